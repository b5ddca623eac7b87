"""The report's page: what it says of whole, half-finished and damaged runs, of comparisons, the main job and sweeps."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from face_runs import EVALUATIONS, UPDATES, train_beam, write_faces
from mlflow import MlflowClient
from PIL import Image

from data_prep.mixtures import draw_mixture
from jobs.report import main
from jobs.report_data import find_autoencoder, find_shards, read_rows
from jobs.report_page import Note, Section, clean, render
from jobs.report_runs import Missing, find_run
from jobs.report_tables import ending, environment
from pipeline.data.manifest import read_manifest
from pipeline.data.shards import load_split
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.pictures.curves import point_density
from pipeline.pictures.grids import image_grid

POINTS = (
    "schedules.likelihood.epochs=0.02 schedules.adversarial.epochs=0.02 sampler.gibbs_steps=1 evaluation.num_rows=50"
)


class Place:
    """A runs folder with one finished run `first`, its cache, and the way to a report."""

    def __init__(self, folder: Path):
        self.runs, self.cache = folder / "runs", folder / "cache"

    def copy(self, name: str, of: str = "first") -> Path:
        return Path(shutil.copytree(self.runs / of, self.runs / name))

    def report(self, *names: str, cache: Path | None = None) -> str:
        """The page about these runs; the command has to succeed."""
        out = self.runs.parent / "page.html"
        options = ["--runs", str(self.runs), "--cache", str(cache or self.cache), "--out", str(out)]
        assert main([*names, *options]) == 0
        return out.read_text()


@pytest.fixture(scope="module")
def made(packaged_autoencoder: PackagedAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    run = train_beam(write_faces(folder / "cache", packaged_autoencoder), folder / "runs", "first")
    few = ("step", "epoch", "gamma", "kl_forward", "frechet_latent")  # drawing curves is most of a report's time
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({key: row[key] for key in few if key in row}) + "\n" for row in rows]
    (run / "metrics.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    """A copy of one's own; the data stay where the run found them."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    place = Place(tmp_path)
    place.cache = made / "cache"
    return place


class Elements(HTMLParser):
    """The elements of a page, and the text of each section."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.text: dict[str, str] = {}
        self._section = "header"
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = "footer"

    def handle_data(self, data: str) -> None:
        self.text[self._section] = f"{self.text.get(self._section, '')} {data}"


def text_of(page: str, section: str) -> str:
    return " ".join(Elements(page).text[section].split())


# --- a training -------------------------------------------------------------------------------------------------------


def test_the_page_of_a_training_says_what_was_trained_and_shows_it(place: Place) -> None:
    page = place.report("first")
    summary = text_of(page, "summary")
    assert f"finished: {UPDATES} of {UPDATES} updates" in summary
    assert "synthetic-faces (drawn stand-in faces, NOT CelebA)" in summary
    assert "12 test, 48 train, 12 valid" in summary
    assert "Held-out (valid) rows: 12, as many samples, driven protocol, E[v|h]" in summary
    last = json.loads((place.runs / "first" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['frechet_latent']:.4g}" in summary
    assert "model.num_hidden 512 8" in text_of(page, "settings")
    assert page.count("<figcaption>update ") == EVALUATIONS
    assert "All 48 training rows are searched" in text_of(page, "neighbors")
    assert "computed now: 12 samples, 12 test rows, 48 training rows" in text_of(page, "neighbors")
    assert "dB PSNR" in text_of(page, "reconstructions")
    assert "train" in text_of(page, "times")
    assert "cpu" in text_of(page, "environment")
    assert re.search(r'(src|href)="(?!data:|#)', page) is None


def test_paths_and_secrets_of_this_machine_are_not_in_the_page(place: Place) -> None:
    run = place.copy("told")
    summary = json.loads((run / "summary.json").read_text())
    told = f"see {place.cache}/models/x and /home/somebody/data/y, http://me:secret@server/z"
    summary["model"] = {"name": "m", "version": "1", "promotion": told}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "job.json").write_text("{")
    page = place.report("told")
    assert "models:/m/1: see models/x and y, http://***@server/z" in text_of(page, "summary")
    for secret in (str(place.cache), str(place.runs.parent), "/home/", "somebody", "secret"):
        assert secret not in page


def test_text_of_a_run_never_becomes_markup(place: Place) -> None:
    run = place.copy("<script>alert(1)")
    evil = "</script><script>alert(2)</script><img src=x onerror='alert(3)'>"
    for name in ("config.json", "summary.json"):
        values = json.loads((run / name).read_text())
        (run / name).write_text(
            json.dumps({**values, "name": evil, "dataset": evil, "model": {"name": evil, "version": evil}})
        )
    page = place.report(run.name)
    assert Elements(page).tags.count("script") == 1
    assert evil not in page and "alert(2)" in page
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", page)


def test_the_policy_names_the_hash_of_what_is_in_the_page() -> None:
    page = render("t", [Section("a", "A", [Note("x")])], "", [])
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("/work/a b/runs/x/y.png", "x/y.png"),
        ("in /work/a b/runs", "in runs"),
        ("/etc/ssl/key.pem is", "key.pem is"),
        ("file:///etc/ssl/key.pem", "key.pem"),
        ("models:/celeba-beam/1, 3/4, updates/s and/or", "models:/celeba-beam/1, 3/4, updates/s and/or"),
        ("sqlite://u:p@host/db", "sqlite://***@host/db"),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text, [Path("/work/a b/runs")]) == cleaned


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_run_without_metrics_still_has_a_page(place: Place) -> None:
    (place.copy("silent") / "metrics.jsonl").unlink()
    page = place.report("silent")
    assert "Silent: it has no metrics" in text_of(page, "summary")
    assert "not known: no update was reported" in text_of(page, "summary")
    assert "Not here" in text_of(page, "curves")
    assert "dB PSNR" in text_of(page, "reconstructions")


def test_a_half_finished_run_says_so(place: Place) -> None:
    run = place.copy("half")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])  # killed while writing
    for name in ("summary.json", "switch", "checkpoints"):
        (shutil.rmtree if (run / name).is_dir() else Path.unlink)(run / name)
    page = place.report("half")
    assert f"not finished: 3 of {UPDATES} updates" in text_of(page, "summary")
    assert page.count("<figcaption>update ") == 2  # of 0 and 2; later ones are of an earlier attempt
    assert "has no whole checkpoint" in text_of(page, "neighbors")
    assert "no summary.json" in text_of(page, "times")
    (run / "failure.json").write_text('{"error": "weights are not finite"}')
    half = find_run("half", place.runs).parts["run"]
    assert ending(half, None) == f"failed after 3 of {UPDATES} updates: weights are not finite"


def test_data_are_found_by_their_hash_wherever_they_lie(place: Place) -> None:
    job = json.loads((place.runs / "first" / "job.json").read_text())
    wanted, folder = job["data_hash"], Path(job["data_dir"])
    assert find_shards(wanted, place.cache, Path("gone")) == folder
    with pytest.raises(Missing, match=r"the data \(manifest 000000000000\) are not here: gone is gone"):
        find_shards("0" * 64, place.cache, Path("gone"))


def test_without_the_data_or_the_autoencoder_the_rest_is_made(place: Place, tmp_path: Path) -> None:
    run = place.copy("lonely")
    job = json.loads((run / "job.json").read_text())
    cache = Path(shutil.copytree(place.cache, tmp_path / "other"))
    (run / "job.json").write_text(json.dumps({**job, "data_dir": str(tmp_path / "gone")}))
    shutil.rmtree(cache / "models")
    page = place.report("lonely", cache=cache)
    assert "is not in the model registry" in text_of(page, "samples")
    assert "is not in the model registry" in text_of(page, "neighbors")
    assert "adversary comes in at update 4" in page
    page = place.report("lonely", cache=tmp_path / "nothing")
    assert "gone is gone or has changed, and nothing/ has no shards with that hash" in text_of(page, "samples")
    assert f"finished: {UPDATES} of {UPDATES} updates" in text_of(page, "summary")


def test_an_encoder_without_a_name_in_the_registry_is_missing(tmp_path: Path) -> None:
    for encoder in ("test", "name/", ""):
        with pytest.raises(Missing, match="is no registered autoencoder"):
            find_autoencoder(encoder, tmp_path, None)


def test_damaged_files_are_named_and_passed_over(place: Place) -> None:
    run = place.copy("damaged")
    (run / "samples" / "step_00000000.npy").write_bytes(b"no array")
    np.save(run / "samples" / "step_00000002.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (run / "summary.json").write_text("[1, 2]")
    (run / "config.json").write_bytes(b"\xff\xfe{")
    page = place.report("damaged")
    assert page.count("<figcaption>update ") == EVALUATIONS - 2
    assert "config.json cannot be read (UnicodeDecodeError)" in text_of(page, "summary")
    assert "summary.json holds no JSON object" in text_of(page, "summary")


def test_an_older_run_without_samples_is_sampled_now(place: Place) -> None:
    run = place.copy("older")
    shutil.rmtree(run / "samples")
    (run / "job.json").unlink()
    page = place.report("older")
    assert "This run kept no samples" in text_of(page, "samples")
    assert f"Drawn now from its checkpoint of update {UPDATES}" in text_of(page, "samples")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["frist"], "there is no run 'frist' in "),
        (["frist"], "there is first"),
        (["../runs/first/config.json"], "is a file: name a run's folder"),
        (["empty"], "'empty' holds no run: a training has config.json, metrics.jsonl, checkpoints"),
        ([], "name a run: python -m jobs.report RUN"),
        (["first", "--out", "page.pdf"], "give a file name that ends in .html"),
        (["first", "--out", "/dev/null/page.html"], "cannot be written"),
        (["first", "swept"], "'swept' is a sweep: report on it alone"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    place: Place, names: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.runs)
    (place.runs / "empty").mkdir()
    (place.runs / "swept" / "trials").mkdir(parents=True)
    assert main([*names, "--runs", str(place.runs), "--cache", str(place.cache)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


# --- other kinds ------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_settings_scores_and_curves(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.copy("second")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seed": 7}))
    assert main(["first", "second", "first", "--runs", str(place.runs), "--cache", str(place.cache)]) == 0
    assert Path(capsys.readouterr().out.strip()) == place.runs / "report.html"
    page = (place.runs / "report.html").read_text()
    assert "2 runs compared" in text_of(page, "header")
    assert "setting first second seed 0 7 All" in text_of(page, "settings")
    assert "measured after update 8 8" in text_of(page, "scores")
    assert "curves of first: frechet_latent, second: frechet_latent over 8 updates" in page
    assert "not trained on the same data" not in page
    assert page.count("<figcaption>update ") == 2 * EVALUATIONS


def test_the_main_jobs_parts_and_test_scores(place: Place) -> None:
    run = place.runs / "chain"
    for part in ("beam", "control"):
        place.copy(f"chain/{part}")
    config = json.loads((run / "control" / "config.json").read_text())
    config["schedules"]["adversarial"]["gamma"] = 1.0
    (run / "control" / "config.json").write_text(json.dumps({**config, "name": "faces_toy_likelihood_only"}))
    row = {"frechet_latent": 12.5, "frechet_latent_spread": 0.25, "memorization_ratio": 1.25}
    summary = {
        "dataset": "synthetic-faces",
        "comparison": {"full Gaussian": {"frechet_latent": 7.0}, "BEAM": row},
        "metrics": {"num_test_rows": 12, "memorization_ratio": 1.25},
        "stages": {"pixels": {"seconds": 1.5, "skipped": False}, "beam": {"seconds": 2.0, "skipped": False}},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    image_grid(np.zeros((1, 9, 9, 3), np.uint8), 1, run / "pictures" / "comparison.png")
    page = place.report("chain")
    assert "BEAM 12.5 ± 0.25 1.25 full Gaussian 7 –" in text_of(page, "summary")
    assert "12 samples of each against as many test rows" in text_of(page, "summary")
    assert "schedules.adversarial.gamma 0.1 0.1 1.0" in text_of(page, "settings")
    assert "The adversary came in: BEAM at update 4." in text_of(page, "curves")
    assert "Beside the baselines" in text_of(page, "samples")
    assert "Memorization ratio 1.250 (from the run's scores)" in text_of(page, "neighbors")
    assert "pixels 1.5 beam 2 all 3.5" in text_of(page, "times")


def sweep_in(place: Place) -> Path:
    """A sweep's folder with two trials of the final comparison."""
    run = place.runs / "swept"
    for trial in ("a", "b"):
        place.copy(f"swept/trials/{trial}")
    image_grid(np.zeros((1, 9, 9, 3), np.uint8), 1, run / "pictures" / "slices.png")
    trials = [
        {"id": "t01", "status": "stopped", "reason": "worse", "settings": {}, "score": None, "updates": 2},
        {"id": "t00", "status": "finished", "settings": {"critic.num_neighbors": 9}, "score": 1.5, "updates": 8},
        {"id": "t02", "status": "failed", "reason": "<b>not finite</b>", "settings": {"seed": 1}, "score": None},
    ]
    variant = {"settings": {}, "runs": [{"seed": 0, "folder": "trials/a", "scores": {"frechet_latent": 2.0}}]}
    variants = {
        "recipe": {**variant, "mean": {"frechet_latent": 2.0}, "spread": {"frechet_latent": 0.5}},
        "winner": {**variant, "mean": {"frechet_latent": 1.5}, "spread": {"frechet_latent": 0.1}},
    }
    variants["winner"]["runs"] = [{"seed": 0, "folder": "trials/b", "scores": {"frechet_latent": 1.5}}]
    summary = {
        "kind": "sweep", "recipe": "faces_toy", "dataset": "synthetic-faces", "metric": "frechet_latent",
        "space": {"critic.num_neighbors": "randint(1, 10)"}, "stages": {"search": {"seconds": 3.0, "skipped": False}},
        "trials": trials, "pictures": {"slices": "pictures/slices.png", "bars": str(run / "pictures" / "bars.png")},
        "final": {"variants": variants, "difference": 0.5, "spread": 0.3, "verdict": "the winner is better", "num_rows": 12},
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_a_sweep_shows_trials_winner_and_recipe(place: Place) -> None:
    sweep_in(place)
    page = place.report("swept")
    assert "3: 1 finished, 1 stopped, 1 failed" in text_of(page, "summary")
    assert "Verdict the winner is better" in text_of(page, "summary")
    assert "2 ± 0.5 1.5 ± 0.1" in text_of(page, "final")
    trials = text_of(page, "trials")
    assert trials.index("t00") < trials.index("t01") < trials.index("t02")
    assert "<b>not finite</b>" in trials and "b" not in Elements(page).tags
    assert "Not here: bars." in text_of(page, "pictures")
    assert page.count("<figcaption>update ") == 2 * EVALUATIONS
    assert text_of(page, "samples").index("winner, seed 0") < text_of(page, "samples").index("recipe, seed 0")


def test_an_unfinished_sweep_compares_what_is_there(place: Place) -> None:
    run = sweep_in(place)
    (run / "summary.json").unlink()
    config = json.loads((run / "trials" / "b" / "config.json").read_text())
    (run / "trials" / "b" / "config.json").write_text(json.dumps({**config, "seed": 7}))
    page = place.report("swept")
    assert "it is not finished. Its folder holds 2 trials so far" in text_of(page, "summary")
    assert "setting a b seed 0 7" in text_of(page, "settings")
    assert "measured after update 8 8" in text_of(page, "scores")
    assert "curves of a: frechet_latent, b: frechet_latent over 8 updates" in page


def test_a_model_of_points_shows_densities(tmp_path: Path) -> None:
    place = Place(tmp_path)
    draw_mixture("ring", place.cache / "ring", 500)
    train_beam(place.cache / "ring", place.runs, "ring", "model.num_visible=2", recipe="mixture_toy", given=POINTS)
    page = place.report("ring")
    samples = text_of(page, "samples")
    assert "v, with its noise" in samples and "2,000 samples (v, driven protocol" in samples
    assert "its data are points" in text_of(page, "neighbors") and "its data are points" in text_of(
        page, "reconstructions"
    )
    assert "NOT CelebA" not in page


# --- parts ------------------------------------------------------------------------------------------------------------


def test_rows_are_read_by_their_places(place: Place) -> None:
    pixels = place.cache / "faces-0" / "pixels"
    places = [40, 3, 3, 0]
    assert torch.equal(read_rows(pixels, "train", places), load_split(pixels, "train")[places])
    assert read_manifest(pixels).kind == "pixels"


def test_densities_of_points_in_one_and_two_dimensions(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2))
    for width in (1, 2):
        path = point_density(rows[:, :width], rows[:9, :width] + 1, tmp_path / f"{width}.png", dataset="ring")
        with Image.open(path) as picture:
            colors = np.asarray(picture.convert("RGB")).astype(int)
        assert (colors[..., 0] - colors[..., 2] > 100).any()  # the samples are orange, all else is gray


def test_points_of_another_shape_have_no_density(tmp_path: Path) -> None:
    for data, samples in ((np.zeros((3, 3)), np.zeros((3, 3))), (np.zeros((0, 1)), np.zeros((3, 1)))):
        with pytest.raises(ValueError, match=r"points have shapes .*; expected finite rows \[n, 1\] or \[n, 2\]"):
            point_density(data, samples, tmp_path / "a.png")
    with pytest.raises(ValueError, match="expected finite rows"):
        point_density(np.zeros((3, 1)), np.full((3, 1), np.nan), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_the_environment_comes_from_mlflow_where_it_answers(place: Place, tracking: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking)
    run = place.copy("tracked")
    tags = {"mlflow.source.git.commit": "0123456789abcdef", "version.ray": "2.60.0", "mlflow.user": "somebody"}
    made = client.create_run(client.create_experiment("e", (tmp_path / "a").as_uri()), tags=tags)
    (run / "mlflow_run_id").write_text(made.info.run_id)
    page = place.report("tracked")
    said = text_of(page, "environment")
    assert "git commit 0123456789ab " in said and "Ray 2.60.0" in said and "somebody" not in page
    (run / "mlflow_run_id").write_text("f" * 32)
    *_, note = environment(list(find_run("tracked", place.runs).parts.values()), tracking)
    assert isinstance(note, Note) and "nothing from MLflow: run ffff" in note.text


def test_a_run_is_found_by_name_before_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.runs)
    assert find_run("first", place.runs).name == "first"
    assert find_run(str(place.runs / "first" / "."), place.runs).name == "first"
    assert find_run("first", Path("elsewhere")).name == "first"
