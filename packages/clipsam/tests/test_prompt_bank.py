"""The sentences, their average, and what is said of a bad file."""

import pytest
import torch

from clipsam.prompt_bank import OBJECT, PromptBank, group_average


def test_every_state_meets_every_template():
    bank = PromptBank()
    normal, abnormal = bank.prompts("bottle")
    assert len(normal) == len(bank.normal_states) * len(bank.templates)
    assert len(abnormal) == len(bank.abnormal_states) * len(bank.templates)
    assert len(set(normal + abnormal)) == len(normal) + len(abnormal)
    assert all("bottle" in sentence and "{}" not in sentence for sentence in normal + abnormal)


def test_underscores_are_spaces():
    assert PromptBank().prompts("metal_nut") == PromptBank().prompts(" metal  nut ")
    assert "a photo of a damaged metal nut" in PromptBank().prompts("metal_nut")[1]


def test_the_object_mode_names_no_category():
    assert "a photo of a flawless object" in PromptBank().prompts(OBJECT)[0]


def test_an_empty_category_is_refused():
    with pytest.raises(ValueError, match="empty"):
        PromptBank().prompts("_ ")


def test_the_hash_follows_the_sentences():
    assert PromptBank().hash == PromptBank().hash != PromptBank(templates=("a scan of {}",)).hash


def test_yaml_overrides_what_it_names(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("abnormal_states: ['a cracked {}']\n")
    bank = PromptBank.from_yaml(path)
    assert bank == PromptBank(abnormal_states=("a cracked {}",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("states: ['a {}']", "normal_states"),
        ("[1, 2]", "no prompt file"),
        ("templates: 'a {}'", "no prompt file"),
        ("templates: []", "empty"),
        ("templates: ['a photo']", "'a photo'"),
        ("templates: [3]", "3"),
        ("templates: [", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, says):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"allowed|not YAML") as error:
        PromptBank.from_yaml(path)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_group_is_averaged_after_normalising():
    embeddings = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(group_average(embeddings), torch.tensor([0.5**0.5, 0.5**0.5]))
    assert group_average(torch.randn(7, 5)).norm() == pytest.approx(1)
