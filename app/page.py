"""The app's page (Gradio) and its own addresses: photos in, masks, queue, progress, model in 3D, downloads."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Mapping

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from app.jobs import MAX_BYTES, MAX_PHOTOS, Job, Queue
from sap3d.errors import InputError
from sap3d.report_page import PAGE, viewer_cameras

# Nothing but this server may be asked for anything, whatever Gradio's own page contains.
POLICY = "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
HOSTS = ("127.0.0.1", "localhost", "[::1]")  # what a browser on this machine, or at the other end of a tunnel, calls it: another site's name that leads here is refused
STAGES = ("cameras", "test-time training", "NeRF and mesh", "evaluation")
FILES = {  # what a run's address may name; nothing else below HOME is served
    "preview.png": lambda s: s.train_dir / "preview.png",
    "cameras.yaml": lambda s: s.refined_cameras if s.refined_cameras.is_file() else s.initial_cameras,
    "novel_views.png": lambda s: s.nvs_dir / "contact_sheet.png",
    "turntable.mp4": lambda s: s.nerf_dir / "save" / "turntable.mp4",
    "mesh.png": lambda s: s.mesh_dir / "mesh.png",
    "renders.png": lambda s: s.nerf_dir / "save" / "sheet.png",
    "model.glb": lambda s: s.mesh_dir / "model.glb",
    "contact_sheet.png": lambda s: s.results_dir / "contact_sheet.png",
}
CSS = (Path(__file__).parent / "page.css").read_text()


def run_file(job: Job, name: str) -> Path | None:
    """The file of a run behind a name of ``FILES``, if it is there and lies in the run's folder."""
    if name == "log.txt":
        path = job.folder / "log.txt"
    elif name in FILES:
        path = FILES[name](job.scene)
    else:
        return None
    return path if path.is_file() and path.resolve().is_relative_to(job.folder.resolve()) else None


def runs_html(queue: Queue, selected: str) -> str:
    rows = []
    for job in queue.jobs():
        state = job.state
        current = ' aria-current="true"' if job.id == selected else ""
        rows.append(f'<a class="run" href="/?run={job.id}"{current}><b>{html.escape(job.name)}</b><span class="state {state}">{_state(queue, job)}</span><small>{html.escape(str(job.asked.get("created", "")))}</small></a>')
    return f'<nav class="runs">{"".join(rows) or "<p>No runs yet.</p>"}</nav>'


def _state(queue: Queue, job: Job) -> str:
    state = job.state
    if state == "waiting":
        before = queue.position(job)
        return f"waiting, {before} before it" if before else "starting"
    return {"masks": "not started"}.get(state, state)


def run_html(queue: Queue, job: Job | None) -> str:
    """Everything about one run: stages with progress, pictures as they come, model, downloads."""
    if job is None:
        return '<div class="empty"><h2>From photos to a model</h2><p>Add five to eight photos of one object, taken from all around it at about the same distance. ' \
               "The background is removed on this machine; nothing leaves it.</p></div>"
    state = job.state
    parts = [f'<header class="title"><h2>{html.escape(job.name)}</h2><span class="state {state}">{_state(queue, job)}</span></header>']
    stage, share, note = job.progress()
    current = next((k for k, name in enumerate(STAGES) if name in stage), -1)
    steps = []
    for k, name in enumerate(STAGES):
        kind = "done" if state == "done" or k < current else "now" if k == current and state == "running" else ""
        width = 100 if kind == "done" else 100 * share if kind == "now" else 0
        steps.append(f'<li class="{kind}"><span>{name}</span><i><b style="width:{width:.0f}%"></b></i></li>')
    if state != "masks":
        parts.append(f'<ol class="steps">{"".join(steps)}</ol>')
    if state == "running" and note:
        parts.append(f'<p class="note">{html.escape(note)}</p>')
    if state == "failed":
        parts.append(f'<p class="error">{html.escape(job.cause())}</p>')
    if run_file(job, "model.glb"):
        parts.append(f'<iframe class="model" title="The model in 3D" src="/runs/{job.id}/view"></iframe>')
    for name, label in (("preview.png", "Photos and masks"), ("novel_views.png", "Novel views"), ("renders.png", "Renders of the NeRF"), ("mesh.png", "Mesh"), ("contact_sheet.png", "All views")):
        path = run_file(job, name)
        if path:
            parts.append(f'<figure><figcaption>{label}</figcaption><img alt="{label}" src="/runs/{job.id}/{name}?{path.stat().st_mtime_ns}"></figure>')
    warnings = _warnings(job)
    if warnings:
        parts.append(f'<ul class="warnings">{"".join(f"<li>{html.escape(line)}</li>" for line in warnings)}</ul>')
    links = [(name, label) for name, label in (("model.glb", "Model (GLB)"), ("cameras.yaml", "Cameras"), ("turntable.mp4", "Turntable video"), ("log.txt", "Log")) if run_file(job, name)]
    if links:
        parts.append('<p class="links">' + "".join(f'<a href="/runs/{job.id}/{name}" download="{html.escape(job.name)}_{name}">{label}</a>' for name, label in links) + "</p>")
    return f'<article class="result">{"".join(parts)}</article>'


def _warnings(job: Job) -> list[str]:
    from sap3d.scene import read_json

    record = read_json(job.scene.train_dir / "photos.json") or {}
    return [f"{view}: {line}" for view, entry in record.get("views", {}).items() for line in entry.get("warnings", [])] + record.get("warnings", [])


def blocks(queue: Queue) -> gr.Blocks:
    with gr.Blocks(title="SAP3D", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        selected = gr.State("")
        gr.HTML('<div class="brand"><h1>SAP3D</h1><p>A few photos of an object become cameras, views and a textured model. Runs on this machine.</p></div>')
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_classes="panel"):
                photos = gr.File(label=f"Photos of one object, at most {MAX_PHOTOS}", file_count="multiple", file_types=[".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif"], height=170, elem_id="photos")
                name = gr.Textbox(label="Name", value="my_toy", max_length=64, elem_id="name")
                find = gr.Button("Find the object in the photos", variant="secondary", elem_id="find")
                quick = gr.Checkbox(label="Quick first look", value=True, elem_id="quick")
                with gr.Row():
                    start = gr.Button("Start", variant="primary", elem_id="start", min_width=80)
                    cancel = gr.Button("Cancel", elem_id="cancel", min_width=80)
                    delete = gr.Button("Delete", elem_id="delete", min_width=80)
                runs = gr.HTML(elem_id="runs")
            with gr.Column(scale=3):
                result = gr.HTML(elem_id="result")
        shown = gr.State("")
        everything = [runs, result, shown]

        def show(identifier: str, before: str = ""):
            job = queue.get(identifier)
            now = (runs_html(queue, identifier), run_html(queue, job))
            signature = json.dumps(now)
            if signature == before:  # what has not changed is not sent: a turning model would start again
                return gr.skip(), gr.skip(), gr.skip()
            return *now, signature

        def opened(request: gr.Request):
            jobs = queue.jobs()
            identifier = request.query_params.get("run") or (jobs[0].id if jobs else "")
            return identifier, *show(identifier)

        def added(files, chosen):
            try:
                job = queue.add(chosen.strip() if isinstance(chosen, str) else "", [Path(path) for path in files or []])
            except InputError as error:
                raise gr.Error(str(error), duration=None) from None
            for path in files:  # the run has copies of its own
                Path(path).unlink(missing_ok=True)
            return job.id, *show(job.id), None

        def act(what):
            def handler(identifier, *options):
                job = queue.get(identifier)
                if job is None:
                    raise gr.Error("add photos first, then find the object in them")
                try:
                    what(job, *options)
                except InputError as error:
                    raise gr.Error(str(error)) from None
                return show(identifier)

            return handler

        demo.load(opened, None, [selected, *everything])
        find.click(added, [photos, name], [selected, *everything, photos], concurrency_limit=1)
        start.click(act(lambda job, fast: queue.start(job, fast)), [selected, quick], everything)
        cancel.click(act(queue.cancel), [selected], everything)
        delete.click(act(queue.delete), [selected], everything)
        gr.Timer(2).tick(show, [selected, shown], everything, show_progress="hidden")
    return demo


def is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request would change something and a page of another address made the browser send it; a program that is no browser names no origin."""
    origin = headers.get("origin")
    return method not in ("GET", "HEAD", "OPTIONS") and origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def application(queue: Queue) -> FastAPI:
    """The whole server: own addresses first, then Gradio's page at the root."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def policy(request: Request, call_next):
        if is_foreign(request.method, request.headers):
            return PlainTextResponse("a page of another address may not ask for this", 403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))

    def job_of(identifier: str) -> Job:
        job = queue.get(identifier)
        if job is None:
            raise HTTPException(404, "no such run")
        return job

    @app.get("/runs/{identifier}/view")
    def view(identifier: str):
        job = job_of(identifier)
        script = (PAGE / "mesh_viewer.js").read_text()
        cameras = json.dumps(viewer_cameras(job.scene))
        style = "html,body{margin:0;height:100%}canvas{width:100%;height:100%;display:block;touch-action:none;cursor:grab;background:linear-gradient(#fdfdfe,#e9edf2)}"
        load = f"fetch('model.glb').then(r => r.arrayBuffer()).then(b => showMesh(document.querySelector('canvas'), b, {cameras}))"
        return HTMLResponse(f"<!doctype html><meta charset=utf-8><title>Model</title><style>{style}</style><canvas tabindex=0></canvas><script>{script}{load}</script>")

    @app.get("/runs/{identifier}/{name}")
    def file(identifier: str, name: str):
        path = run_file(job_of(identifier), name)
        if path is None:
            raise HTTPException(404, "no such file")
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    system = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]  # Gradio's default theme would ask a font server
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="lg", font=system, font_mono=["ui-monospace", "monospace"])
    page = blocks(queue)
    page.has_launched = True  # only launch() would set it, and without it Gradio takes, copies and serves any file that a request names
    return gr.mount_gradio_app(app, page, path="/", max_file_size=MAX_BYTES, allowed_paths=[], theme=theme, css=CSS, footer_links=[], show_error=True, ssr_mode=False)
