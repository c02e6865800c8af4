from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from infinity_mm.engines.allowance import OUT_OF_BUDGET, Allowed
from infinity_mm.engines.base import Capabilities, Engine, Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.journaled import Journaled
from infinity_mm.errors import BudgetSpentError, UserError
from infinity_mm.record import Text, Turn
from infinity_mm.runtime.budget import Account, Amount, Bank, BudgetConfig, Grant, read_account
from infinity_mm.runtime.link import Link, Purse
from infinity_mm.storage.journal import Journal


def ask(text: str) -> Request:
    return Request(turns=(Turn("user", (Text(text),)),), max_new_tokens=10)


MOST = 64 + 1 + 10
"""Tokens set aside for `ask` of one letter: template, text, reply."""


class Echo:
    """Says the prompt; remembers how many requests it was sent."""

    fingerprint = "echo"
    capabilities = Capabilities(images_per_prompt=1, choice_logprobs=False, seeds=True, reproducible="exact")

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.sent = 0

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.sent += len(requests)
        await asyncio.sleep(self.delay_s)
        return [Reply(text=r.turns[-1].text, prompt_tokens=5, completion_tokens=2) for r in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        self.sent += len(scorings)
        return [Likelihood(mean_logprob=-1.0, num_tokens=3, prompt_tokens=5) for _ in scorings]


def lending(bank: Bank, worker: str, purse: Purse) -> None:
    """One round of what the driver does."""
    need, wish = purse.wants()
    purse.put(bank.lend(worker, need=need, wish=wish))


def test_a_bank_lends_no_more_than_the_limit_whatever_is_asked(tmp_path: Path) -> None:
    bank = Bank(BudgetConfig(requests=10), str(tmp_path))
    first = bank.lend("a", need=Amount(requests=4), wish=Amount(requests=100))
    second = bank.lend("b", need=Amount(requests=3), wish=Amount(requests=100))
    third = bank.lend("a", need=Amount(requests=9), wish=Amount())
    assert (first.amount.requests, first.is_last) == (5, False)
    assert (second.amount.requests, second.is_last) == (3, False)
    assert (third.amount.requests, third.is_last) == (2, True)


def test_what_is_lent_is_on_disk_before_it_is_spent_and_what_was_not_spent_comes_back(tmp_path: Path) -> None:
    bank = Bank(BudgetConfig(requests=100), str(tmp_path))
    bank.lend("a", need=Amount(requests=40), wish=Amount())
    assert read_account(str(tmp_path)).requests == 40  # a kill now costs the 40
    bank.close_worker("a", spent=Amount(requests=25, tokens=7))
    bank.close()
    account = read_account(str(tmp_path))
    assert (account.requests, account.tokens) == (25, 7)


def test_without_limits_one_write_covers_a_lease_of_every_worker(tmp_path: Path) -> None:
    bank = Bank(BudgetConfig(), str(tmp_path))
    covered = []
    for worker in "aba":
        bank.lend(worker, need=Amount(requests=10), wish=Amount())
        covered.append(read_account(str(tmp_path)).requests)
    assert covered == [20, 20, 50], "never less than the 10, 20 and 30 that are lent"
    bank.close()
    assert read_account(str(tmp_path)).requests == 30


def test_a_worker_that_died_has_spent_all_it_was_lent_and_takes_no_share_any_more(tmp_path: Path) -> None:
    bank = Bank(BudgetConfig(requests=16), str(tmp_path))
    wish = Amount(requests=100)
    assert bank.lend("a", need=Amount(), wish=wish).amount.requests == 8
    assert bank.lend("b", need=Amount(), wish=wish).amount.requests == 2, "half of 8, for two"
    bank.close_worker("a", spent=None)
    assert bank.lend("b", need=Amount(), wish=wish).amount.requests == 3, "half of 6"
    assert bank.account().requests == 13


def test_a_later_call_goes_on_from_what_was_spent(tmp_path: Path) -> None:
    first = Bank(BudgetConfig(requests=10), str(tmp_path))
    first.lend("a", need=Amount(requests=10), wish=Amount())
    again = Bank(BudgetConfig(requests=12), str(tmp_path))
    assert again.lend("b", need=Amount(requests=5), wish=Amount()) == Grant(
        amount=Amount(requests=2), is_last=True
    )


def test_gpu_hours_stop_a_run_before_the_limit_and_count_over_calls(tmp_path: Path) -> None:
    now = [0.0]
    config = BudgetConfig(gpu_hours=0.5, gpus=4)  # 1,800 GPU seconds: 450 s
    bank = Bank(config, str(tmp_path), clock=lambda: now[0])
    now[0] = 300.0
    bank.check_time()
    bank.close()
    assert read_account(str(tmp_path)) == Account(gpu_seconds=1200.0)
    now[0] = 1000.0
    again = Bank(config, str(tmp_path), clock=lambda: now[0])
    now[0] = 1148.0
    again.check_time()
    now[0] = 1149.5
    with pytest.raises(BudgetSpentError, match=r"0\.499 of 0\.5 GPU hours"):
        again.check_time()


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UserError, match="leave a limit out for none"):
        BudgetConfig(requests=-1)


def test_requests_wait_for_a_grant_and_are_sent_when_it_comes() -> None:
    async def scenario() -> tuple[int, int]:
        echo, link = Echo(), Link(image_tokens=0)
        engine = Allowed(echo, link.purse)
        calls = [asyncio.create_task(engine.generate([ask("a"), ask("b")])) for _ in range(2)]
        report = await link.report()  # at once: they wait
        before = echo.sent
        assert report.need == Amount(requests=4, tokens=4 * MOST)
        link.receive(Grant(amount=report.need, is_last=False))
        await asyncio.gather(*calls)
        assert link.purse.spent == Amount(requests=4, tokens=4 * 7)
        return before, echo.sent

    assert asyncio.run(scenario()) == (0, 4)


def test_at_the_end_the_last_requests_are_sent_one_by_one_and_the_others_are_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        echo, bank = Echo(), Bank(BudgetConfig(requests=3), str(tmp_path))
        link = Link(image_tokens=0)
        call = asyncio.create_task(Allowed(echo, link.purse).generate([ask(c) for c in "abcde"]))
        while not call.done():
            await asyncio.sleep(0)
            lending(bank, "a", link.purse)
        answers = await call
        assert [answer is OUT_OF_BUDGET for answer in answers] == [False, False, False, True, True]
        assert echo.sent == 3

    asyncio.run(scenario())


def test_tokens_set_aside_come_back_so_that_a_budget_of_tokens_is_used_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        limit = MOST + 7 * 9  # after nine replies of 7 tokens there is room for just one more
        echo, bank = Echo(), Bank(BudgetConfig(tokens=limit), str(tmp_path))
        link = Link(image_tokens=0)
        call = asyncio.create_task(Allowed(echo, link.purse).generate([ask("a")] * 40))
        while not call.done():
            await asyncio.sleep(0)
            lending(bank, "a", link.purse)
        answers = await call
        assert sum(answer is not OUT_OF_BUDGET for answer in answers) == echo.sent == 10
        assert link.purse.spent.tokens == 70 <= limit

    asyncio.run(scenario())


def test_scorings_are_paid_for_like_requests() -> None:
    async def scenario() -> None:
        echo, link = Echo(), Link(image_tokens=0)
        link.receive(Grant(amount=Amount(requests=1, tokens=10**6), is_last=True))
        said = Scoring(turns=(Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))))
        [first, second] = await Allowed(echo, link.purse).score([said, said])
        assert isinstance(first, Likelihood)
        assert second is OUT_OF_BUDGET
        assert (echo.sent, link.purse.spent) == (1, Amount(requests=1, tokens=8))

    asyncio.run(scenario())


def test_nobody_is_told_to_stop_while_a_reply_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        slow, link = Echo(delay_s=0.05), Link(image_tokens=0)
        journaled = Journaled(Allowed(slow, link.purse), Journal(str(tmp_path), "w"))
        link.receive(Grant(amount=Amount(requests=1, tokens=10**6), is_last=True))
        paid = asyncio.create_task(journaled.generate([ask("a")]))
        await asyncio.sleep(0)
        refused = asyncio.create_task(journaled.generate([ask("b")]))
        with pytest.raises(BudgetSpentError):
            await refused
        assert (await paid)[0].text == "a"  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_replies_of_a_call_that_the_budget_cuts_short_are_recorded_and_the_refused_are_not(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        link = Link(image_tokens=0)
        link.receive(Grant(amount=Amount(requests=2, tokens=10**6), is_last=True))
        journaled = Journaled(Allowed(Echo(), link.purse), Journal(str(tmp_path), "w"))
        with pytest.raises(BudgetSpentError):
            await journaled.generate([ask("a"), ask("b"), ask("c")])

    asyncio.run(scenario())
    journal = Journal(str(tmp_path), "reader")
    assert len(journal) == 2
    keys = [ask(text).key("echo") for text in "abc"]
    assert [journal.get(key) is not None for key in keys] == [True, True, False]


def test_a_call_that_is_given_up_is_spent_and_does_not_hold_up_the_end() -> None:
    async def scenario() -> None:
        link = Link(image_tokens=0)
        engine: Engine = Allowed(Echo(delay_s=60.0), link.purse)
        link.receive(Grant(amount=Amount(requests=1, tokens=MOST), is_last=True))
        call = asyncio.create_task(engine.generate([ask("a")]))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert link.purse.spent == Amount(requests=1, tokens=MOST)
        assert await engine.generate([ask("b")]) == [OUT_OF_BUDGET]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (Reply(text="x", prompt_tokens=20, completion_tokens=5), 25),
        (Failure(reason="http_429", detail="", retryable=True), 0),
        (Failure(reason="timeout", detail="", retryable=True), MOST),
    ],
    ids=["a reply costs what it says", "turned away costs nothing", "lost costs the most it can"],
)
def test_tokens_of(answer: Reply | Failure, tokens: int) -> None:
    purse = Purse(lambda: None, image_tokens=0)
    purse.put(Grant(amount=Amount(requests=1, tokens=1000), is_last=False))
    asyncio.run(purse.reserve([ask("a")]))
    purse.settle(ask("a"), answer)
    assert purse.spent == Amount(requests=1, tokens=tokens)
