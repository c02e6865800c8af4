from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path


def in_a_fresh_process(code: str) -> str:
    """What the code prints; torchvision is imported once per process, so each case needs its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fake_torchvision(folder: Path, code: str) -> str:
    """The lines that put a torchvision with this content before the installed one."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    return f"import sys; sys.path.insert(0, {str(folder)!r}); import infinity_mm;"


def test_torchvision_and_open_clip_can_be_imported_after_the_package() -> None:
    assert in_a_fresh_process("import infinity_mm, torchvision.transforms, open_clip; print('ok')") == "ok"


def test_importing_the_package_loads_neither_torch_nor_torchvision() -> None:
    code = "import infinity_mm, sys; print({'torch', 'torchvision', 'open_clip'} & set(sys.modules))"
    assert in_a_fresh_process(code) == "set()"


def test_a_torchvision_that_works_is_left_alone(tmp_path: Path) -> None:
    setup = fake_torchvision(tmp_path, "works = True")
    printed = in_a_fresh_process(
        f"{setup} import torchvision; print(torchvision.works, 'torch' in sys.modules)"
    )
    assert printed == "True False"


def test_another_fault_of_torchvision_is_raised_as_it_came(tmp_path: Path) -> None:
    setup = fake_torchvision(tmp_path, "raise RuntimeError('something else')")
    code = f"""
{setup}
try:
    import torchvision
except RuntimeError as error:
    print(error)
"""
    assert in_a_fresh_process(code) == "something else"
