"""The malformed inputs, by group."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sap3d.scene import REPOSITORY
from tests.malformed import files
from tests.malformed.runner import Case, Place

RELPOSE, BOOTH, RECON, EVALUATE = STAGES = ("relposepp.run", "camerabooth.run", "3D_Recon.threestudio.launch", "sap3d.evaluate")
SHORT = ("steps=1", "grid=[8]", "level_starts=[0.0]", "photo_sizes=[16]", "render_size=16", "turntable_frames=1", "mesh_cells=16", "texture_size=64")  # should it run after all


def stage(module: str, *settings: str, type_="T", object_="o", views="3") -> list[str]:
    return [module, "--type", type_, "--object", object_, "--views", views, *settings]


def put(where, content: bytes):
    """Writes ``content`` to the file that ``where(place)`` names, in place of whatever is there."""

    def prepare(place: Place) -> None:
        path = where(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content(place) if callable(content) else content)

    return prepare


def images():
    for name, content in files.broken_images().items():
        yield Case("images", name, stage(RELPOSE), put(lambda p: p.photo(), content), "00")
    for module in (BOOTH, RECON):
        for name in ("PNG cut after 90 bytes", "text", "RGB PNG", "transparent PNG", "the picture of another view"):
            yield Case("images", f"{name}, {module}", stage(module), put(lambda p: p.photo(), files.broken_images()[name]), "00")

    def replaced(make):
        def prepare(place):
            place.photo().unlink()
            make(place.photo())

        return prepare

    special = {
        "missing": lambda path: None, "folder": Path.mkdir, "pipe": os.mkfifo, "link to nothing": lambda path: path.symlink_to("nowhere"), "link to itself": lambda path: path.symlink_to(path.name),
        "link to a device": lambda path: path.symlink_to("/dev/zero"), "link to a folder": lambda path: path.symlink_to("/etc"), "link to a text file": lambda path: path.symlink_to("/etc/passwd"),
        "two endings": lambda path: [shutil.copy(path.with_name("002.png"), path.with_name(f"002.{ending}")) for ending in ("jpg", "webp")],
    }  # fmt: skip
    for name, make in special.items():
        yield Case("images", f"photo: {name}", stage(RELPOSE), replaced(make), "images")
    yield Case("images", "no folder of photos", stage(RELPOSE), lambda p: shutil.rmtree(p.photo().parent), "no such folder")
    yield Case("images", "folder of photos is a file", stage(RELPOSE), lambda p: (shutil.rmtree(p.photo().parent), p.photo().parent.write_text("x")), "images")
    mask = lambda p: p.scene.train_dir / "masks" / "001.png"  # noqa: E731
    for name, content in {"text": b"x", "empty": b"", "all black": files.encoded(files.disc()[..., 0] * 0), "of another size": files.encoded(files.disc(0, 40)[..., 3]), "cut": files.encoded(files.disc()[..., 3])[:50]}.items():
        yield Case("images", f"mask: {name}", stage(RELPOSE), put(mask, content), "001.png")
    for name, content in files.bombs().items():
        yield Case("bombs", name, stage(RELPOSE), put(lambda p: p.photo(), content), "001.png")
        yield Case("bombs", f"mask: {name}", stage(RELPOSE), put(mask, content), "001.png")


GOOD_VIEW = b"{elevation_deg: 0, azimuth_deg: 0, radius: 1.5, fov_deg: 49}"
CAMERAS = {
    "empty": b"", "brace": b"{", "number": b"3", "text": b"hello", "list": b"[1, 2]", "binary": b"\xff\xfe\x00\x01", "tab": b"views:\n\t'000': 1", "no views": b"cameras: {}",
    "views is a number": b"views: 3", "views is a list": b"views: [1, 2, 3]", "views is empty": b"views: {}", "views is null": b"views:", "another view": b"views: {'007': " + GOOD_VIEW + b"}",
    "one view alone": b"views: {'000': " + GOOD_VIEW + b"}", "a text for a number": GOOD_VIEW.replace(b"1.5", b"far"), "a list for a number": GOOD_VIEW.replace(b"1.5", b"[1]"), "key missing": GOOD_VIEW.replace(b"radius", b"distance"),
    "radius -1": GOOD_VIEW.replace(b"1.5", b"-1"), "radius 0": GOOD_VIEW.replace(b"1.5", b"0"), "radius infinite": GOOD_VIEW.replace(b"1.5", b".inf"), "radius nan": GOOD_VIEW.replace(b"1.5", b".nan"),
    "radius of 400 digits": GOOD_VIEW.replace(b"1.5", b"1" * 400), "elevation 91": GOOD_VIEW.replace(b"elevation_deg: 0", b"elevation_deg: 91"), "azimuth nan": GOOD_VIEW.replace(b"azimuth_deg: 0", b"azimuth_deg: .nan"),
    "field of view 0": GOOD_VIEW.replace(b"49", b"0"), "field of view 180": GOOD_VIEW.replace(b"49", b"180"), "deep": b"[" * 5000, "deep and closed": b"views: " + b"[" * 3000 + b"]" * 3000,
    "aliases that multiply": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % ((k + 1, k + 1) + (k,) * 8) for k in range(97, 110)) + b"views: *n\n",
    "a loop": b"views: &a [*a]", "a Python object": b"views: !!python/object/apply:os.system ['touch CANARY']", "a Python name": b"views: !!python/name:os.system", "two documents": b"views: 1\n---\nviews: 2\n",
}  # fmt: skip


def yaml_files():
    for name, content in CAMERAS.items():
        content = b"views: {'000': " + content + b", '001': " + GOOD_VIEW + b", '002': " + GOOD_VIEW + b"}" if content.startswith(b"{e") or content.startswith(b"{d") else content

        def filled(place, content=content):
            return content.replace(b"CANARY", str(place.canary).encode())

        yield Case("camera files", f"{name}, stage 2", stage(BOOTH), put(lambda p: p.scene.initial_cameras, filled), "config_o_view_3.yaml")
        yield Case("camera files", f"{name}, stage 3", stage(RECON), put(lambda p: p.scene.refined_cameras, filled), "cameras.yaml")
    yield Case("camera files", "a folder", stage(BOOTH), lambda p: (p.scene.initial_cameras.unlink(), p.scene.initial_cameras.mkdir()), "no such camera file")
    yield Case("camera files", "missing", stage(BOOTH), lambda p: p.scene.initial_cameras.unlink(), "no such camera file")
    settings = {
        "list": b"[1, 2]", "number": b"3", "unknown key": b"stepz: 3", "text for a number": b"seed: many", "list for a number": b"seed: [1]", "dictionary for a number": b"seed: {a: 1}", "null": b"seed:", "brace": b"{",
        "binary": b"\xff\xfe\x00", "deep": b"[" * 5000, "a reference to itself": b"seed: ${seed}", "a reference to nothing": b"seed: ${nothing}", "a Python object": b"seed: !!python/object/apply:os.system ['touch CANARY']",
        "a number too large": b"seed: 1e400", "two documents": b"seed: 1\n---\nseed: 2",
    }  # fmt: skip
    for name, content in settings.items():
        yield Case("setting files", name, stage(BOOTH, "--config", "{inputs}/settings.yaml"), put(lambda p: p.inputs / "settings.yaml", lambda place, content=content: content.replace(b"CANARY", str(place.canary).encode())))
    yield Case("setting files", "missing", stage(RECON, "--config", "{inputs}/none.yaml"), None, "none.yaml")
    yield Case("setting files", "a folder", stage(RECON, "--config", "{inputs}"), None, "inputs")


SETTINGS = {
    RELPOSE: ("device=tpu", "search=all", "hypotheses=0", "azimuth_step_deg=0", "elevation_range_deg=[50,10]", "elevation_range_deg=[1]", "weights=/nowhere", "weights={inputs}", "device=cuda:0", "seed=x", "=3", "seed", "seed=-1", "starts=-5", "[]"),
    BOOTH: ("device=tpu", "trained=all", "regulariser=best", "precision=fp4", "condition_strategy=best", "steps=0", "batch_size=0", "learning_rate=-1", "learning_rate=nan", "nvs_steps=0", "nvs_batch_size=0", "output_size=0", "model=/nowhere", "model={inputs}", "device=cuda:0", "seed=-1"),
    RECON: ("device=tpu", "steps=0", "grid=[]", "grid=[9999]", "grid=[a]", "texture=none", "sds_condition=best", "level_starts=[0.0,0.9,0.5]", "model=/nowhere", "cameras=/nowhere.yaml", "cameras={inputs}", "device=cuda:0", "box=-1", "box=nan", "rays=0", "photo_sizes=[0,0,0]", "seed=-1", "mesh_cells=100000", "texture_size=10000000"),
    EVALUATE: ("size=0", "size=-5", "size=1e9", "size=99999", "device=tpu force=true"),
}  # fmt: skip


def command_lines():
    for module, settings in SETTINGS.items():
        for setting in settings:
            yield Case("settings", f"{module} {setting}", stage(module, *setting.split()))
        for views in ("0", "-3", "2.5", "many", "", "9999999999999999999999"):
            yield Case("numbers", f"{module} --views {views!r}", stage(module, views=views))
        yield Case("options", f"{module} --fast", stage(module, "--fast"))
        yield Case("options", f"{module} without an object", [module, "--type", "T", "--views", "3"], None, "--object")
    driver = "run_pipeline.sh"
    calls = (
        "T o 3", "none o 3 0", "T nobody 3 0", "T o 0 0", "T o abc 0", "T o -3 0", "T o 2.5 0", "T o 3 a", "T o 3 -1", "T o 3 0 --fast", "T o 3 0 steps=3", "T o 3 0 booth.stepz=3", "T o 3 0 recon.steps=many",
        "T o 9 cpu", "T o 3 cpu --seed", "T o 3 cpu --seed x", "T o 3 cpu --seed -1", "T o 3 cpu --seed=", "T o 3 cpu --seed 99999999999999999999", "T o 3 cpu --from-stage nerf", "T o 3 cpu --only-stage", "T o 3 cpu --from-stage booth --only-stage recon",
        "T o 3 cpu --only-stage=", "T o 9 cpu --dry-run", "T o;true 3 0", "T $(true) 3 0", "T * 3 0", "T `id` 3 0", "T o 3 0;true",
    )  # fmt: skip
    for call in calls:
        yield Case("drivers", f"run_pipeline.sh {call}", [driver, *call.split(" ")])
    yield Case("drivers", "run_pipeline.sh with an empty type", [driver, "", "o", "3", "0"])
    yield Case("drivers", "run_pipeline.sh with a line break", [driver, "T", "o\n", "3", "0"])
    batches = (
        "", "--object_type none", "--object_type T --objects nobody", "--object_type T --views 0", "--object_type T --views x", "--object_type T --views", "--object_type T --gpus a,b", "--object_type T --gpus ,", "--object_type T --set booth.stepz=3",
        "--object_type T --set stepz=3", "--object_type T --engine slurm", "--object_type T --retries -1", "--object_type T --seed x", "--object_type T --from-stage nerf", "--object_type T --address nowhere:1",
    )  # fmt: skip
    for call in batches:
        yield Case("drivers", f"run_pipeline.py {call}", ["run_pipeline.py", *call.split()])


def names():
    bad = ("../o", "/etc", "a/b", "..", ".", ".hidden", "o\n", "", "o\x07", "o o", "-rf", "~root", "a\\b", "o..o", "ö", "o" * 129, "$HOME", "o;true", "%2e%2e", "CON:")
    for module in STAGES:
        for name in bad:
            yield Case("names", f"{module} object {name!r}", stage(module, f"--object={name}"), None, "plain name")
    for name in bad:
        yield Case("names", f"{RELPOSE} type {name!r}", stage(RELPOSE, f"--type={name}"), None, "plain name")
        yield Case("names", f"dataset.render --name {name!r}", ["dataset.render", "{inputs}/a.obj", "--type", "T2", f"--name={name or ' '}"], put(lambda p: p.inputs / "a.obj", files.OBJ.encode()), "plain name")
    for name in ("../o", "/etc", "a/b", "..", ""):
        yield Case("names", f"run_pipeline.sh {name!r}", ["run_pipeline.sh", "T", name, "3", "0"])
        yield Case("names", f"run_pipeline.py {name!r}", ["run_pipeline.py", f"--object_type={name}"])
        yield Case("names", f"dataset.gso --type {name!r}", ["dataset.gso", "{inputs}/object.zip", f"--type={name}"], put(lambda p: p.inputs / "object.zip", files.archive(files.OBJECT)), "plain name")


def meshes():
    for name, content in files.broken_meshes().items():
        yield Case("meshes", name, ["dataset.render", "{inputs}/" + name, "--type", "T2", "--name", "m", "--views", "1"], put(lambda p, name=name: p.inputs / name, content), name.split(".")[0])
    for call in ("none.obj", ".", "a.obj --views 0", "a.obj --views 99", "a.obj --up x", "a.obj --input-size 1", "a.obj --test-size 100000"):
        yield Case("meshes", f"dataset.render {call}", ["dataset.render", "--type", "T2", *("{inputs}/" + call).split()], put(lambda p: p.inputs / "a.obj", files.OBJ.encode()))


def archives():
    for name, content in files.broken_archives().items():
        yield Case("archives", name, ["dataset.gso", "{inputs}/object.zip", "--type", "T2", "--views", "1"], put(lambda p: p.inputs / "object.zip", content), "object.zip")
    yield Case("archives", "missing", ["dataset.gso", "{inputs}/none.zip"], None, "none.zip")
    yield Case("archives", "an empty folder", ["dataset.gso", "{inputs}"], None, "inputs")


def weights(place: Place) -> Path:
    """A copy of stage 1's weights to be damaged."""
    folder = place.inputs / "weights"
    folder.mkdir()
    for part in ("config.json", "model.safetensors"):
        shutil.copy(REPOSITORY / "relposepp" / "weights" / "tiny" / part, folder)
    return folder


def models_and_pickles():
    short = ("model={model}", *SHORT)
    personal = lambda p: p.scene.personal_dir / "personal.safetensors"  # noqa: E731
    checkpoint = lambda p: p.scene.personal_dir / "checkpoint.pt"  # noqa: E731
    ids = lambda p: p.scene.train_dir / "query_class" / "query_match_paths.npy"  # noqa: E731
    pack = lambda p: p.root / "dataset" / "data" / "objaverse" / "pack.npz"  # noqa: E731
    pose = lambda p: p.root / "dataset" / "data" / "objaverse" / "thing" / "poses" / "000.npy"  # noqa: E731
    training = stage(BOOTH, "model={model}", "steps=1", "batch_size=1", "regulariser_objects=1", "nvs_steps=1")
    kinds = {"hostile pickle": lambda p: files.hostile_pickle(p.canary), "hostile checkpoint": lambda p: files.hostile_torch(p.canary), "hostile array": lambda p: files.hostile_npy(p.canary),
             "hostile pack": lambda p: files.hostile_npz(p.canary), "empty": b"", "text": b"hello", "zip header": b"PK\x03\x04half"}  # fmt: skip
    for name, content in kinds.items():
        yield Case("pickles", f"personal model: {name}", stage(RECON, *short), put(personal, content), "personal.safetensors")
        yield Case("pickles", f"checkpoint: {name}", training, put(checkpoint, content), "checkpoint.pt")
        yield Case("pickles", f"regulariser ids: {name}", training, put(ids, content), "query_match_paths.npy")
        yield Case("pickles", f"regulariser pack: {name}", training, put(pack, content), "pack.npz")

        def folder_of_views(place, content=content):
            image = pose(place).parent.parent / "images" / "000.png"
            put(lambda p: image, files.encoded(files.disc()))(place)
            put(pose, content)(place)

        yield Case("pickles", f"regulariser pose: {name}", training, folder_of_views, "000.npy")
        for part in ("config.json", "model.safetensors"):

            def damaged(place, content=content, part=part):
                (weights(place) / part).write_bytes(content(place) if callable(content) else content)

            yield Case("pickles", f"stage 1's {part}: {name}", stage(RELPOSE, "weights={inputs}/weights"), damaged, "weights")

        def damaged_model(place, content=content):
            shutil.copytree(place.model, place.inputs / "model")
            for path in (place.inputs / "model").rglob("*.safetensors"):
                path.write_bytes(content(place) if callable(content) else content)

        yield Case("pickles", f"Zero-1-to-3: {name}", stage(BOOTH, "model={inputs}/model", "steps=1"), damaged_model, "model")


def novel_views():
    for name in ("PNG cut after 90 bytes", "text", "PNG of no size"):
        yield Case("novel views", f" view: {name}", stage(RECON, "model={model}", *SHORT), put(lambda p: p.scene.nvs_dir / "preds" / "040.png", files.broken_images()[name]), "040.png")
    yield Case("novel views", " missing", stage(RECON, "model={model}", *SHORT), lambda p: (p.scene.nvs_dir / "preds" / "040.png").unlink(), "040.png")


def memory():
    """Settings that ask for more memory than any machine has."""
    yield Case("memory", "stage 1", stage(RELPOSE, "starts=1000000000000"), None, "lower relpose.starts")
    yield Case("memory", "stage 3", stage(RECON, "sds=false", "warm_start=false", "rays=10000000000000", *SHORT), None, "lower recon.rays")


def all_cases() -> list[Case]:
    return [case for make in (images, yaml_files, command_lines, names, meshes, archives, models_and_pickles, novel_views, memory) for case in make()]
