"""A path or a name: what is a folder, what may be on the hub, and what is fetched from there."""

import huggingface_hub
import pytest

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import hub


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What `snapshot_download` is asked for; it gives `tmp_path`/cache."""
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_folder_is_itself(asked, tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub.folder_of("owner/name") == hub.folder_of("owner/name/")
    assert str(hub.folder_of("owner/name")) == "owner/name" and not asked


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/na.me-2_b", "owner/na.me-2_b", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
        ("gpt2", "gpt2", None),
    ],
)
def test_a_name_is_fetched_without_what_could_be_run(asked, tmp_path, text, name, revision):
    assert hub.folder_of(text) == tmp_path / "cache"
    ((found, options),) = asked
    assert (found, options["revision"]) == (name, revision)
    assert hub.is_hub_name(text)
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            *("config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt"),
            *("chat_template.jinja", "pytorch_model.bin", "modeling_x.py", "x.pkl"),
            *("original/params.json", "onnx/config.json", "README.md"),
        ],
        allow_patterns=options["allow_patterns"],
        ignore_patterns=options["ignore_patterns"],
    )
    assert list(wanted) == [
        *("config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt"),
        "chat_template.jinja",
    ]


@pytest.mark.parametrize(
    "text", ["./name", "/no/such", "~/no-such-folder", "a/b/c", "runs/lm", "a b", "../x", "x/"]
)
def test_a_path_is_never_looked_up(asked, tmp_path, text):
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="no such folder"):
        hub.folder_of(text)
    assert not asked


def test_the_nearest_folder_is_named(asked, tmp_path):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no such folder; did you mean runs/model\?"):
        hub.folder_of("runs/modle")


def test_offline_is_one_error_with_both_reasons(monkeypatch, tmp_path):
    def offline(*args, **options):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt3").mkdir()
    with pytest.raises(CheckpointError) as caught:
        hub.folder_of("gpt2")
    assert str(caught.value) == (
        "gpt2: no such folder; did you mean gpt3?; and from the Hugging Face hub it cannot be "
        "fetched: no network"
    )
