// Starts the 3D view of an object when its card comes into sight; the GLB lies in the page as base64.
"use strict";
function decode(base64) { return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer; }
function start(box) {
  const canvas = box.querySelector("canvas"), note = box.querySelector(".hint");
  try {
    const glb = decode(document.getElementById(box.dataset.glb).textContent.trim());
    const view = showMesh(canvas, glb, JSON.parse(box.dataset.cameras));
    box.querySelector("[name=shape]").addEventListener("change", (e) => view.setShape(e.target.checked));
    box.querySelector("[name=cameras]").addEventListener("change", (e) => view.setCameras(e.target.checked));
    box.querySelector("a").href = URL.createObjectURL(new Blob([glb], {type: "model/gltf-binary"}));
  } catch (error) { note.textContent = "cannot be shown: " + error.message; }
}
const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting) { watcher.unobserve(entry.target); start(entry.target); }
}), {rootMargin: "200px"});
document.querySelectorAll(".mesh").forEach((box) => watcher.observe(box));
