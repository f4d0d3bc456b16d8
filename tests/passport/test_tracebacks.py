"""No frame of ours that a traceback shows has a secret or a passphrase among its variables."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import passportize as pp
from passportize.errors import WrongPassphrase
from passportize.passport import sealing
from passportize.passport.commitment import check_commitment

SECRET = bytes(range(100, 132))
PASSPHRASE = "a long and winding passphrase"
HIDDEN = (SECRET.hex(), repr(SECRET)[2:20], PASSPHRASE)


def passport() -> pp.Passport:
    return pp.Passport.generate("Acme", date="2026-11-28", secret=SECRET)


def changed(path: Path, **values: object) -> Path:
    passport().save(path)
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: content[key] for key in content if content[key] != "drop"}))
    return path


def sealed(folder: Path) -> Path:
    passport().save(folder / "sealed", PASSPHRASE)
    return folder / "sealed"


def cut_short(folder: Path) -> Path:
    path = changed(folder / "cut")
    path.write_text(path.read_text()[:-40])
    path.chmod(0o600)
    return path


CASES: dict[str, Callable[[Path], object]] = {
    "damaged": lambda folder: pp.Passport.load(changed(folder / "a", owner="Evil")),
    "an unknown field": lambda folder: pp.Passport.load(changed(folder / "a", more=1)),
    "a missing field": lambda folder: pp.Passport.load(changed(folder / "a", images="drop")),
    "pictures that are none": lambda folder: pp.Passport.load(changed(folder / "a", images="AA==")),
    "newer": lambda folder: pp.Passport.load(changed(folder / "a", version=2)),
    "cut short": lambda folder: pp.Passport.load(cut_short(folder)),
    "wrong passphrase": lambda folder: pp.Passport.load(sealed(folder), PASSPHRASE + "x"),
    "sealed, none given": lambda folder: pp.Passport.load(sealed(folder)),
    "no folder": lambda folder: passport().save(folder / "none" / "a"),
    "no folder, sealed": lambda folder: passport().save(folder / "none" / "a", PASSPHRASE),
    "there already": lambda folder: passport().save(changed(folder / "a")),
    "an odd secret": lambda folder: pp.Passport.generate(
        "Acme", date="2026-11-28", secret=SECRET + b"x"
    ),
    "an odd owner": lambda folder: pp.Passport.generate("", date="2026-11-28", secret=SECRET),
    "an odd label": lambda folder: passport().stream("x", -1),
    "nobody": lambda folder: passport().licensee(""),
    "no pictures": lambda folder: passport().with_images(None, None),  # type: ignore[arg-type]
    "an odd opening": lambda folder: check_commitment(
        passport().commitment(), passport().opening() | {"salt": "no"}
    ),
    "no text": lambda folder: check_commitment(0, passport().opening()),  # type: ignore[arg-type]
}


def errors(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def shown(error: BaseException) -> list[str]:
    """What an error reporter writes of frames of the library."""
    texts = []
    for each in errors(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if Path(frame.f_code.co_filename).is_relative_to(Path(pp.__file__).parent):
                texts += [repr(value) for value in frame.f_locals.values()]
        texts += [str(each), repr(each)]
    return texts


@pytest.mark.filterwarnings("ignore:.*can be read by other users", "ignore:.*is not sealed")
@pytest.mark.parametrize("case", CASES)
def test_errors_show_no_secret(case: str, tmp_path: Path) -> None:
    with pytest.raises(pp.PassportizeError) as caught:
        CASES[case](tmp_path)
    assert not [text for text in shown(caught.value) if any(part in text for part in HIDDEN)]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, MemoryError])
def test_interruptions_show_no_secret(
    cause: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise cause

    monkeypatch.setattr(sealing, "_stretch", stopped)
    with pytest.raises(cause) as caught:
        passport().save(tmp_path / "a", PASSPHRASE)
    assert not [text for text in shown(caught.value) if any(part in text for part in HIDDEN)]
    assert not list(tmp_path.iterdir())


def test_this_test_would_see_it(tmp_path: Path) -> None:
    with pytest.raises(WrongPassphrase) as caught:
        sealing.unseal(sealed(tmp_path).read_bytes(), PASSPHRASE + "x", "it")
    assert [text for text in shown(caught.value) if PASSPHRASE in text]
