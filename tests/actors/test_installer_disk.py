"""What the disk says is believed by the installer, and what is broken is built anew."""

from __future__ import annotations

from greenroom.actors import events as ev
from greenroom.actors import messages as msg
from greenroom.actors.effects import BuildInstallation, LookAtInstallations
from installer_life import NOW, built, committed, ensure, fails, look, new_life, requested, status
from stage import NO_SPACE


class TestTheDisk:
    def test_is_looked_at_in_every_new_life(self) -> None:
        case = new_life(looked=False)
        assert not case.told("scheduler")
        case.advance(30).rest()
        assert case.of(LookAtInstallations) == [LookAtInstallations(backends=("mlx", "vllm-metal"))]

    def test_with_an_installation_the_journal_does_not_know_is_believed(self) -> None:
        case = new_life(disk=(built(),))
        assert [type(one.event) for one in case.history] == [ev.InstallationFound]
        assert status(case).current == built()
        assert ensure(case) == msg.Ensured(installation=built(), fresh=False)

    def test_with_several_unknown_ones_brings_the_latest_into_use(self) -> None:
        old, new = built("1-aaaa.1", built_at=1.0), built("2-bbbb.1", built_at=2.0)
        case = new_life(disk=(old, new))
        assert status(case).current == new
        assert len(status(case).installations) == 2

    def test_without_an_installation_the_journal_knows_is_believed_as_well(self) -> None:
        case = new_life(requested(), committed())
        assert [type(one.event) for one in case.history][2:] == [ev.InstallationMissing]
        assert status(case).state == "absent"

    def test_with_a_broken_one_says_so_with_the_reason_and_the_next_wish_repairs_it(self) -> None:
        broken = built(broken="mlx/core.so is missing")
        case = new_life(requested(), committed(), disk=(broken,))
        assert (status(case).state, status(case).failure.message) == (  # type: ignore[union-attr]
            "broken",
            "mlx/core.so is missing",
        )
        ensure(case)
        (build,) = case.of(BuildInstallation)
        assert build.repair
        whole = built("1-aaaa.2", built_at=NOW.wall + 5)
        case.when(msg.InstallCommitted(job="mlx.2", installation=whole)).rest()
        case.then(ev.InstallationCommitted, ev.InstallationRetiring)
        assert status(case).current == whole

    def test_with_one_that_is_whole_again_finds_it(self) -> None:
        broken = ev.InstallationBroken(backend="mlx", installation_id="1-aaaa.1", reason="gone")
        case = new_life(requested(), committed(), broken, disk=(built(),))
        assert status(case).state == "installed"

    def test_with_a_broken_current_one_falls_back_to_another_whole_one(self) -> None:
        old, new = built("1-aaaa.1", built_at=1.0), built("2-bbbb.1", built_at=2.0)
        history = (requested(), committed(one=old), requested("mlx.2"), committed("mlx.2", new))
        broken = built("2-bbbb.1", built_at=2.0, broken="it does not start")
        case = new_life(*history, disk=(old, broken))
        assert ev.InstallationActivated in [type(one.event) for one in case.history]
        assert status(case).current == old

    def test_is_not_believed_when_the_look_is_older_than_a_commit(self) -> None:
        case = new_life()
        ensure(case)
        case.when(msg.InstallCommitted(job="mlx.1", installation=built())).rest()
        look(case)
        assert status(case).state == "installed"


class TestARepair:
    def test_builds_anew_beside_and_retires_the_old_one(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        ensure(case, repair=True)
        case.then(requested("mlx.2", wanted_by="repair"))
        (build,) = case.of(BuildInstallation)
        assert build.repair
        assert status(case).state == "installed"
        new = built("1-aaaa.2", built_at=NOW.wall + 9)
        case.when(msg.InstallCommitted(job="mlx.2", installation=new)).rest()
        case.then(ev.InstallationCommitted, ev.InstallationRetiring)
        assert status(case).current == new
        assert status(case).retiring == ("1-aaaa.1",)

    def test_that_fails_leaves_the_old_one_in_use(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        ensure(case, repair=True)
        fails(case, NO_SPACE, job="mlx.2")
        assert status(case).state == "installed"
        case.when(msg.CancelInstall(backend="mlx")).rest()
        assert status(case).wanted
