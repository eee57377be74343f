"""The README's examples are run as they stand."""

import re
import shutil
import subprocess
import sys

from conftest import DEMO, ROOT
from stepwell.emit import emit
from stepwell.importer.walk import HANDLERS

README = (ROOT / "README.md").read_text()


def example(language: str) -> str:
    return re.search(rf"<!-- example: {language} -->\n```{language}\n(.*?)```", README, re.DOTALL).group(1)


def test_python_example(tmp_path):
    code = example("python")
    assert len(code.strip().splitlines()) <= 16
    shutil.copytree(DEMO, tmp_path / "stepwell-demo")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"about \d+ flights left; the state is 204 bytes", done.stdout)


def test_c_example(turbofan, tmp_path):
    emit(turbofan, tmp_path, "motor")
    (tmp_path / "main.c").write_text(
        example("c") + "#include <stdio.h>\n"
        "int main(void)\n{\n    int16_t x[MOTOR_N_IN] = {0};\n    if (setup()) return 1;\n"
        '    printf("%ld\\n", (long)on_sample(x));\n    return 0;\n}\n'
    )
    sources = re.search(r"Compile it with `(.*?)`", README).group(1).split()
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", "example", "main.c", *sources]
    subprocess.run(command, cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "example"], capture_output=True, text=True, check=True).stdout
    assert int(printed) == turbofan.stream().step_q([0] * turbofan.n_in)[0]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_operators_that_convert_are_listed():
    listed = re.search(
        r"^Operators known: (.*?)\.\s", (ROOT / "docs" / "import.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert re.split(r",\s+", listed.group(1)) == sorted(HANDLERS)
