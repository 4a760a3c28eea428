// A textured GLB and its cameras in a canvas, by plain WebGL: nothing is fetched. Used by sap3d.report (data embedded in the page).
// showMesh(canvas, glb: ArrayBuffer, cameras: [{name, centre: [x, y, z], right, up, tangent}] in the world frame, z up) -> {setShape(bool)}
"use strict";

function readGlb(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 20 || view.getUint32(0, true) !== 0x46546c67) throw new Error("not a GLB file");
  const length = view.getUint32(12, true);
  const json = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, length)));
  const start = 20 + length + 8;
  const types = {5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array};
  const widths = {SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4};
  const array = (index) => {
    const accessor = json.accessors[index], part = json.bufferViews[accessor.bufferView];
    const from = start + (part.byteOffset || 0) + (accessor.byteOffset || 0), count = accessor.count * widths[accessor.type];
    const type = types[accessor.componentType];
    return {width: widths[accessor.type], data: new type(buffer.slice(from, from + count * type.BYTES_PER_ELEMENT))};
  };
  const primitive = json.meshes[0].primitives[0], attributes = primitive.attributes;
  const mesh = {position: array(attributes.POSITION).data, index: Uint32Array.from(array(primitive.indices).data), uv: null, colour: null, image: null};
  if (attributes.TEXCOORD_0 !== undefined && json.images) {
    mesh.uv = array(attributes.TEXCOORD_0).data;
    const part = json.bufferViews[json.images[0].bufferView];
    mesh.image = new Blob([new Uint8Array(buffer, start + (part.byteOffset || 0), part.byteLength)], {type: json.images[0].mimeType || "image/png"});
  } else if (attributes.COLOR_0 !== undefined) {
    const colour = array(attributes.COLOR_0), scale = colour.data instanceof Float32Array ? 1 : colour.data instanceof Uint8Array ? 255 : 65535;
    mesh.colour = new Float32Array(colour.data.length / colour.width * 3);
    for (let i = 0; i < mesh.colour.length; i++) mesh.colour[i] = colour.data[Math.floor(i / 3) * colour.width + i % 3] / scale;
  }
  return mesh;
}

function smoothNormals(position, index) { // vertices at one place share a normal, whatever their texture coordinates
  const key = new Map(), owner = new Uint32Array(position.length / 3), sum = new Float32Array(position.length), out = new Float32Array(position.length);
  for (let v = 0; v < owner.length; v++) {
    const k = [0, 1, 2].map((c) => Math.round(position[3 * v + c] * 1e5)).join();
    if (!key.has(k)) key.set(k, v);
    owner[v] = key.get(k);
  }
  for (let t = 0; t < index.length; t += 3) {
    const [a, b, c] = [0, 1, 2].map((k) => 3 * index[t + k]);
    const u = [0, 1, 2].map((k) => position[b + k] - position[a + k]), w = [0, 1, 2].map((k) => position[c + k] - position[a + k]);
    const n = [u[1] * w[2] - u[2] * w[1], u[2] * w[0] - u[0] * w[2], u[0] * w[1] - u[1] * w[0]];
    for (let corner = 0; corner < 3; corner++) for (let k = 0; k < 3; k++) sum[3 * owner[index[t + corner]] + k] += n[k];
  }
  for (let v = 0; v < owner.length; v++) {
    const n = [0, 1, 2].map((k) => sum[3 * owner[v] + k]), length = Math.hypot(...n) || 1;
    for (let k = 0; k < 3; k++) out[3 * v + k] = n[k] / length;
  }
  return out;
}

function showMesh(canvas, glb, cameras) {
  const gl = canvas.getContext("webgl", {antialias: true, alpha: true, preserveDrawingBuffer: true});
  if (!gl) throw new Error("this browser has no WebGL");
  gl.getExtension("OES_element_index_uint");
  const program = (vertex, fragment) => {
    const made = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, "precision highp float;" + text);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
    }
    gl.linkProgram(made);
    if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
    return made;
  };
  const surface = program(
    "attribute vec3 position, normal, colour; attribute vec2 uv; uniform mat4 view, projection; varying vec3 n, c, p; varying vec2 t;" +
    "void main() { vec4 q = view * vec4(position, 1.0); p = q.xyz; n = mat3(view) * normal; c = colour; t = uv; gl_Position = projection * q; }",
    "uniform sampler2D image; uniform float textured, shape; varying vec3 n, c, p; varying vec2 t;" +
    "void main() { float d = abs(dot(normalize(n), normalize(p))); vec3 base = mix(c, texture2D(image, t).rgb, textured);" +
    "vec3 grey = vec3(0.80, 0.81, 0.84) * (0.28 + 0.72 * d); gl_FragColor = vec4(mix(base * (0.88 + 0.12 * d), grey, shape), 1.0); }");
  const lines = program("attribute vec3 position; uniform mat4 view, projection; void main() { gl_Position = projection * view * vec4(position, 1.0); }",
    "uniform vec3 colour; void main() { gl_FragColor = vec4(colour, 1.0); }");

  const mesh = readGlb(glb), count = mesh.position.length / 3;
  const buffer = (data, target = gl.ARRAY_BUFFER) => { const b = gl.createBuffer(); gl.bindBuffer(target, b); gl.bufferData(target, data, gl.STATIC_DRAW); return b; };
  const buffers = {
    position: [buffer(mesh.position), 3], normal: [buffer(smoothNormals(mesh.position, mesh.index)), 3],
    colour: [buffer(mesh.colour || new Float32Array(3 * count).fill(0.8)), 3], uv: [buffer(mesh.uv || new Float32Array(2 * count)), 2],
  };
  const index = buffer(mesh.index, gl.ELEMENT_ARRAY_BUFFER);
  const yUp = ([x, y, z]) => [x, z, -y]; // the world has z up, GLB y up
  const frusta = [];
  for (const camera of cameras) {
    const centre = yUp(camera.centre), right = yUp(camera.right), up = yUp(camera.up), size = 0.16;
    const norm = Math.hypot(...centre), forward = centre.map((v) => -v / norm);
    const corner = (sx, sy) => centre.map((v, k) => v + size * (forward[k] + camera.tangent * (sx * right[k] + sy * up[k])));
    const corners = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
    corners.forEach((c, k) => frusta.push(...centre, ...c, ...c, ...corners[(k + 1) % 4]));
  }
  const frustumBuffer = buffer(new Float32Array(frusta));

  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array([200, 200, 200, 255]));
  if (mesh.image) createImageBitmap(mesh.image).then((image) => { // glTF's v runs down, as a picture's rows do
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
    const power = (n) => (n & (n - 1)) === 0, mip = power(image.width) && power(image.height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    if (mip) { gl.generateMipmap(gl.TEXTURE_2D); gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR); }
    canvas.dataset.ready = "yes";
    draw();
  }); else canvas.dataset.ready = "yes";

  const state = {azimuth: 0.6, elevation: 0.35, distance: cameras.length ? 3.4 : 2.2, shape: 0, cameras: true, turning: !matchMedia("(prefers-reduced-motion: reduce)").matches};
  function draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2), width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    const [sa, ca, se, ce] = [Math.sin(state.azimuth), Math.cos(state.azimuth), Math.sin(state.elevation), Math.cos(state.elevation)];
    const f = 1 / Math.tan(0.36), near = 0.05, far = 20; // seen from azimuth and elevation as in docs/conventions.md
    const view = new Float32Array([-sa, -se * ca, ce * ca, 0, 0, ce, se, 0, -ca, se * sa, -ce * sa, 0, 0, 0, -state.distance, 1]);
    const projection = new Float32Array([f * Math.min(1, height / width), 0, 0, 0, 0, f * Math.min(1, width / height), 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0]);
    const attribute = (owner, name, [data, size]) => {
      const at = gl.getAttribLocation(owner, name);
      if (at < 0) return;
      gl.bindBuffer(gl.ARRAY_BUFFER, data);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, size, gl.FLOAT, false, 0, 0);
    };
    const use = (owner) => {
      for (let k = 0; k < 4; k++) gl.disableVertexAttribArray(k);
      gl.useProgram(owner);
      gl.uniformMatrix4fv(gl.getUniformLocation(owner, "view"), false, view);
      gl.uniformMatrix4fv(gl.getUniformLocation(owner, "projection"), false, projection);
    };
    use(surface);
    for (const name in buffers) attribute(surface, name, buffers[name]);
    gl.uniform1f(gl.getUniformLocation(surface, "textured"), mesh.uv ? 1 : 0);
    gl.uniform1f(gl.getUniformLocation(surface, "shape"), state.shape);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, index);
    gl.drawElements(gl.TRIANGLES, mesh.index.length, gl.UNSIGNED_INT, 0);
    if (frusta.length && state.cameras) {
      use(lines);
      attribute(lines, "position", [frustumBuffer, 3]);
      gl.uniform3f(gl.getUniformLocation(lines, "colour"), 0.11, 0.42, 0.86);
      gl.drawArrays(gl.LINES, 0, frusta.length / 3);
    }
  }
  let last = 0;
  function turn(now) {
    if (!state.turning) return;
    if (canvas.isConnected && canvas.getBoundingClientRect().bottom > 0 && canvas.getBoundingClientRect().top < innerHeight) {
      state.azimuth += Math.min(now - last, 100) * 0.0005;
      draw();
    }
    last = now;
    requestAnimationFrame(turn);
  }
  const stop = () => { state.turning = false; };
  canvas.addEventListener("pointerdown", (e) => { stop(); canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", (e) => {
    if (!e.buttons) return;
    state.azimuth -= e.movementX * 0.01;
    state.elevation = Math.max(-1.5, Math.min(1.5, state.elevation + e.movementY * 0.01));
    draw();
  });
  const zoom = (factor) => { state.distance = Math.max(0.8, Math.min(8, state.distance * factor)); draw(); };
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); stop(); zoom(Math.exp(e.deltaY * 0.001)); }, {passive: false});
  canvas.addEventListener("keydown", (e) => {
    const moves = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1]}[e.key];
    if (moves) { state.azimuth += moves[0]; state.elevation = Math.max(-1.5, Math.min(1.5, state.elevation + moves[1])); }
    else if (e.key === "+" || e.key === "-") zoom(e.key === "+" ? 0.9 : 1.1);
    else return;
    e.preventDefault();
    stop();
    draw();
  });
  addEventListener("resize", draw);
  draw();
  requestAnimationFrame(turn);
  return {setShape: (on) => { state.shape = on ? 1 : 0; draw(); }, setCameras: (on) => { state.cameras = on; draw(); }, state, draw};
}
