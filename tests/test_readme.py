"""The examples of README.md and docs/accuracy.md are run as they stand."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import stepwell
from conftest import DEMO, ROOT
from stepwell.emit import emit
from stepwell.importer.walk import HANDLERS
from test_report import invoke

README = (ROOT / "README.md").read_text()
ACCURACY = (ROOT / "docs" / "accuracy.md").read_text()


def example(name: str, page: str = README) -> str:
    return re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", page, re.DOTALL).group(1)


def test_python_example(tmp_path):
    code = example("python")
    assert len(code.strip().splitlines()) <= 16
    shutil.copytree(DEMO, tmp_path / "stepwell-demo")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"about \d+ flights left; the state is 204 bytes", done.stdout)


def test_fine_tuning_example(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="fine-tuning needs torch")
    shutil.copytree(DEMO, tmp_path / "stepwell-demo")
    monkeypatch.chdir(tmp_path)
    x = torch.from_numpy(np.load("stepwell-demo/turbofan_calib.npz")["x"][:8])
    exec(
        example("qat", ACCURACY),
        {"batches": [(x, torch.full((8, 1), 0.5, dtype=torch.float64))] * 2},
    )
    model = stepwell.load("turbofan.stw")
    assert model.info()["precision"] == "w4a16" and model.notes["fine_tuned"]


def test_commands_of_the_precision_section(tmp_path, monkeypatch):
    for name, file in (("motor.onnx", "turbofan.onnx"), ("train.npz", "turbofan_calib.npz")):
        shutil.copy(DEMO / file, tmp_path / name)
    data = np.load(DEMO / "turbofan_test.npz")
    np.savez(tmp_path / "test.npz", **{name: data[name][:10] for name in ("x", "lengths", "y")})
    monkeypatch.chdir(tmp_path)
    section = ACCURACY.split("## Which precision")[1].split("\n## ")[0]
    commands = re.findall(r"^    stepwell (.*)$", section, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["convert", "convert", "report"]
    for command in commands:
        done = invoke(*command.replace("--steps 100000", "--steps 400").split())
        assert done.code == 0, done.stderr
    assert (
        stepwell.load("motor.stw").info()["precision"] == "w8a16,0:w4a16"
        and (tmp_path / "motor.html").is_file()
    )


def test_c_example(turbofan, tmp_path):
    emit(turbofan, tmp_path, "motor")
    (tmp_path / "main.c").write_text(
        example("c") + "#include <stdio.h>\n"
        "int main(void)\n{\n    int16_t x[MOTOR_N_IN] = {0};\n    if (setup()) return 1;\n"
        '    printf("%ld\\n", (long)on_sample(x));\n    return 0;\n}\n'
    )
    command = re.search(r"Compile it with `(.*?)`", README).group(1)
    subprocess.run(
        f"{command} -Wall -Wextra -Werror -o example", cwd=tmp_path, shell=True, check=True
    )
    printed = subprocess.run(
        [tmp_path / "example"], capture_output=True, text=True, check=True
    ).stdout
    assert int(printed) == turbofan.stream().step_q([0] * turbofan.n_in)[0]


def test_the_readme_is_two_screens_and_links():
    lines = README.splitlines()
    assert len(lines) <= 135
    long = [line for line in lines if len(line) > 100 and not line.startswith("|")]
    assert not long, "Markdown has 100 columns at most"


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_operators_that_convert_are_listed():
    listed = re.search(
        r"^Operators known: (.*?)\.\s",
        (ROOT / "docs" / "import.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    assert re.split(r",\s+", listed.group(1)) == sorted(HANDLERS)
