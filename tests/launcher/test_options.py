"""Options on the command line, in the environment and in YAML: parsing, precedence, mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from server_process import run_launch

from launcher.checks import prepare
from launcher.launch_command import make_command
from launcher.options import merge, read_config_file, settings
from launcher.topology_file import read_topology_file
from pdv_mp.config import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = write(
        tmp_path / "server.yaml",
        "scheduling:\n  max-num-seqs: 4\n  queue_factor: 2\n  max_open_requests: 9\nport: 1\n",
    )
    done = run_launch(
        *("--config", str(file), "--max_num_seqs", "6", "--print-config"),
        environment={"PDV_MAX_NUM_SEQS": "5", "PDV_QUEUE_FACTOR": "3", "PDV_CHECK_INVARIANTS": "1"},
    )
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    lines = {
        line.split(":")[0].strip(): line.split("#")[1].strip()
        for line in done.stdout.splitlines()
        if "#" in line
    }
    values = yaml.safe_load(done.stdout)
    assert values["scheduling"]["max_num_seqs"] == 6
    assert lines["max_num_seqs"] == "command line"
    assert values["scheduling"]["queue_factor"] == 3.0
    assert lines["queue_factor"] == "PDV_QUEUE_FACTOR"
    assert values["scheduling"]["max_open_requests"] == 9
    assert lines["max_open_requests"] == str(file)
    assert values["server"]["port"] == 1
    assert values["server"]["check_invariants"] is True
    assert values["scheduling"]["prefill_priority"] == 0.5
    assert lines["prefill_priority"] == "default"


def test_prefix_caching_that_cannot_be_is_warned_of(tmp_path: Path) -> None:
    private = {"kv_handoff": "copy"}
    assert merge(private, {}, None).warnings == ()
    assert merge({**private, "enable_prefix_caching": False}, {}, None).warnings == ()
    assert merge({"enable_prefix_caching": True}, {}, None).warnings == ()
    (warning,) = merge(private, {"PDV_ENABLE_PREFIX_CACHING": "yes"}, None).warnings
    assert warning.startswith("--enable-prefix-caching has no effect with --kv-handoff copy: ")


def test_printed_configuration_is_a_file_that_gives_the_same_one(tmp_path: Path) -> None:
    given = {"max_num_seqs": 3, "kv_cache_memory": 1 << 31, "served_model_name": "a: b # c"}
    values = merge(given, {}, None)
    again = merge({}, {}, write(tmp_path / "again.yaml", values.as_yaml()))
    assert again.config() == values.config()
    assert again.sources["max_num_seqs"].endswith("again.yaml")


@pytest.mark.parametrize("text", ['{"method": "ngram"}\n', "a\nb", "a\u2028b", "", " ", "x\n\n "])
def test_values_of_several_lines_are_printed_so_that_they_can_be_read(
    text: str, tmp_path: Path
) -> None:
    values = merge({"speculative_config": text}, {}, None)
    again = merge({}, {}, write(tmp_path / "again.yaml", values.as_yaml()))
    assert again.values["speculative_config"] == text


def test_a_heading_with_nothing_below_it_says_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "server.yaml", "http:\n  # http_port: 1\ncache:\nmodel:\n")
    assert read_config_file(file) == {}


def test_what_was_printed_warns_of_nothing_when_it_is_read(tmp_path: Path) -> None:
    given = {"num_speculative_tokens": 4, "kv_handoff": "copy"}
    printed = write(tmp_path / "printed.yaml", merge(given, {}, None).as_yaml())
    assert merge({}, {}, printed).warnings == ()
    ours = write(tmp_path / "ours.yaml", "num_speculative_tokens: 4\nmax_speculative_tokens: 2\n")
    (warning,) = merge({}, {}, ours).warnings
    assert warning.startswith("--max-speculative-tokens has no effect with --num-speculative")


def test_options_of_a_gateway_that_is_not_there_are_warned_of() -> None:
    (warning,) = merge({"api_key_file": "/x"}, {}, None).warnings
    assert warning == "--api-key-file has no effect without --http-port"
    assert merge({"api_key_file": "/x", "http_port": 0}, {}, None).warnings == ()


def test_lengths_of_drafts_that_nobody_makes_are_warned_of() -> None:
    values = merge({"num_speculative_tokens": 5, "draft_model": "none", "groups": 2}, {}, None)
    assert list(values.without_drafts(prepare(values.config()))) == [
        "--num-speculative-tokens has no effect: no --draft-model is served",
        "--groups 2 has no effect: topology 'unified' does not draft in a process of its own",
    ]
    ngram = {"speculative_config": '{"method": "ngram"}', "num_speculative_tokens": 5}
    values = merge(ngram, {}, None)
    assert list(values.without_drafts(prepare(values.config()))) == []
    values = merge({"num_speculative_tokens": 5, "groups": 2, "topology": "pdv"}, {}, None)
    assert list(values.without_drafts(prepare(values.config()))) == []


def test_text_that_no_message_can_carry_is_refused(tmp_path: Path) -> None:
    done = run_launch("--trace", os.fsdecode(b"/tmp/\xe9.json"), "--port", "0")
    assert done.code == 2
    assert done.messages == ["--trace '/tmp/\\udce9.json' is not text in UTF-8"]
    file = write(tmp_path / os.fsdecode(b"t\xe9.yaml"), "workers: []")
    with pytest.raises(ConfigError, match=r"the name of --topology-file .* is not text in UTF-8"):
        read_topology_file(file)


def test_config_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path / "server.yaml", "max_num_seqs: 11\n")
    done = run_launch("--print-config", environment={"PDV_CONFIG": str(file)})
    assert "max_num_seqs: 11" in done.stdout


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("64K", 65536), ("256M", 1 << 28), ("1.5G", 3 << 29), ("2GiB", 1 << 31)],
)
def test_sizes_have_suffixes(text: str, size: int) -> None:
    values = merge({}, {"PDV_KV_CACHE_MEMORY": text}, None)
    assert values.values["kv_cache_memory"] == size


def test_unknown_environment_variables_are_warned_of() -> None:
    values = merge({}, {"PDV_MAX_NUM_SEQ": "1", "PATH": "x"}, None)
    assert values.warnings == (
        "environment variable PDV_MAX_NUM_SEQ is not an option and is ignored; "
        "did you mean PDV_MAX_NUM_SEQS?",
    )


def test_group_and_option_of_one_name_are_told_apart(tmp_path: Path) -> None:
    flat = read_config_file(write(tmp_path / "flat.yaml", "model: /some/folder\n"))
    nested = read_config_file(write(tmp_path / "nested.yaml", "model: {model: /some/folder}\n"))
    assert flat == nested == {"model": "/some/folder"}
    assert read_config_file(write(tmp_path / "empty.yaml", "")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-num-seq: 1", "unknown option 'max-num-seq'; did you mean max_num_seqs?"),
        ("cache: {blocksize: 1}", "unknown option 'blocksize' in 'cache'; did you mean block_size"),
        ("port: 1\nserver: {port: 2}", "option 'port' is given twice"),
        ("port: [1]", "port: expected one value"),
        ("port: many", "port: 'many' is not a valid integer."),
        ("queue_factor: many", "queue_factor: 'many' is not a valid number."),
        ("port: 70000", "port: 70000 is not in the range"),
        ("kv-layout: round", "kv_layout: 'round' is not one of"),
        ("check_invariants: maybe", "'maybe' is not a valid boolean"),
        ("- port", "must be a map"),
        ("port: [", "is not plain YAML"),
        ("port: !!python/object:os.system {}", "is not plain YAML"),
    ],
)
def test_mistakes_in_the_file_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge({}, {}, write(tmp_path / "server.yaml", text))
    assert message in str(caught.value)
    assert "server.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read --config .*gone.yaml: No such file"):
        merge({}, {}, tmp_path / "gone.yaml")


def test_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^environment variable PDV_PORT: '-1x' is not a valid"):
        merge({}, {"PDV_PORT": "-1x"}, None)


def test_help_shows_every_option_with_its_variable_and_default() -> None:
    shown = CliRunner().invoke(
        make_command(), ["--help"], max_content_width=400, terminal_width=400
    )
    text = " ".join(shown.output.split())
    for setting in settings():
        assert f"{setting.flag} " in text
        assert setting.environment in text
        for alias in setting.info.aliases:
            assert alias in text
    assert "[1 to 4096; default 32; PDV_MAX_NUM_SEQS; also --max-running-requests]" in text
    assert "--check-invariants / --no-check-invariants" in text
    assert "--parent-fd" not in text
