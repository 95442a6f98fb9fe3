"""A failover as a story: what the journal tells of each pause covers what its reader measured, in a few lines."""

import attrs
import pytest
import trio

from hydra.protocol.journal_story import LINES_MAX, StoryLine, stories_of
from hydra.protocol.messages.journal import RecordedEntry
from hydra.simulation.determinism import run_sim
from hydra.simulation.memory_network import uniform
from hydra.simulation.world import Chat, Shape, World, open_world

PROMPTS = [[n, 20 + n, 40 + n, 60 + n][: 2 + n] for n in range(4)]


@attrs.define
class Reader:
    """Notes the longest time between two tokens of a chat, as its reader sees them."""

    chat: Chat
    pause_s: float = 0.0

    async def watch(self) -> None:
        seen, last_s = 0, trio.current_time()
        while not self.chat.over:
            await self.chat.news.wait()
            if len(self.chat.tokens) > seen:
                now_s = trio.current_time()
                self.pause_s = max(self.pause_s, now_s - last_s) if seen else 0.0
                seen, last_s = len(self.chat.tokens), now_s


def play(fault, shape=None) -> tuple[World, list[Reader], tuple[RecordedEntry, ...]]:
    """Four streams, and a fault in the middle of them."""
    worlds, readers, entries = [], [], []

    async def story() -> None:
        async with open_world(shape or Shape(workers=3, layers=9), 1) as world:
            worlds.append(world)
            await world.until_ready()
            async with trio.open_nursery() as nursery:
                for prompt in PROMPTS:
                    readers.append(Reader(world.chat(prompt, max_tokens=40)))
                    nursery.start_soon(readers[-1].watch)
                for reader in readers:
                    await reader.chat.until(5)
                await fault(world)
            for reader in readers:
                world.check(reader.chat)
            await trio.sleep(2.0)
            entries.extend(world.coordinator.journal.ring.all())

    run_sim(1, story)
    return worlds[0], readers, tuple(entries)


def check(entries, readers) -> list[StoryLine]:
    """Of each session's one story. Returns the first one's."""
    stories = [stories_of(entries, str(number)) for number in range(1, len(readers) + 1)]
    for (story,), reader in zip(stories, readers, strict=True):
        assert 3 <= len(story) <= LINES_MAX
        assert all(line.step_s >= 0.0 for line in story)
        assert sum(line.step_s for line in story) == pytest.approx(reader.pause_s, rel=0.1)
        assert [line.time_s for line in story] == sorted(line.time_s for line in story)
    return stories[0][0]


def kinds(entries):
    return [recorded.entry.kind for recorded in entries]


def before(story, *words):
    """Whether these words are in lines of the story, in this order."""
    lines = iter(line.text for line in story)
    return all(any(word in line for line in lines) for word in words)


def test_a_worker_that_was_killed():
    async def fault(world):
        world.kill("w2", back_after_s=1.0)

    world, readers, entries = play(fault)
    story = check(entries, readers)
    texts = "\n".join(line.text for line in story)
    assert before(
        story, "last token", "lost w2 (exited: signal 9)", "is down", "planned", "hold their layers", "goes on"
    )
    assert "4 answers wait" in texts and "w1 layers" in texts and "computed again" in texts
    down = next(recorded for recorded in entries if recorded.entry.kind == "route_down")
    waits = [recorded for recorded in entries if recorded.entry.kind == "session_interrupted"]
    assert all(one.process == "f1" and 0.0 <= one.time_s - down.time_s < 0.01 for one in waits), "clocks agree"
    (loss,) = world.coordinator.journal.losses()
    assert (loss.node_id, loss.interrupted) == ("w2", 4)
    assert loss.longest_pause_s == pytest.approx(max(reader.pause_s for reader in readers), rel=0.1)
    samples = {sample.name: sample for sample in world.coordinator.journal.samples()}
    assert samples["hydra_session_pause_seconds"].count == 4 and samples["hydra_route_down_seconds"].count == 1


def test_a_coordinator_that_was_killed():
    """Its ring went with it: what led here is told anew by those who outlived it."""

    async def fault(world):
        world.kill("coordinator", back_after_s=0.5)

    world, readers, entries = play(fault)
    story = check(entries, readers)
    assert before(story, "the coordinator died", "began its term 2", "joined", "planned", "is up", "goes on")
    assert "its coordinator is gone" in "\n".join(line.text for line in story)
    assert kinds(entries).count("coordinator_began") == 1 and entries[0].entry.count == 2
    assert [recorded.id for recorded in entries] == sorted({recorded.id for recorded in entries})
    (loss,) = world.coordinator.journal.losses()
    assert (loss.node_id, loss.interrupted) == ("coordinator", 4)


def test_a_suspect_that_recovered():
    """Nothing is planned and nothing computed again; the reader sees a pause all the same."""

    async def fault(world):
        last = world.holder_of(8)
        link = world.network.link(last, "coordinator")
        usual, link.delay = link.delay, uniform(1.85, 1.85)
        await trio.sleep(1.0)
        link.delay = usual

    world, readers, entries = play(fault)
    story = check(entries, readers)
    assert before(story, "last token", "suspect", "is heard again", "goes on")
    assert "nothing computed again" in story[-1].text and "lost" not in kinds(entries)
    assert world.coordinator.journal.losses() == ()


def test_no_pause_has_no_story():
    async def fault(world):
        await trio.lowlevel.checkpoint()

    _, _, entries = play(fault)
    assert [stories_of(entries, str(number)) for number in range(1, 5)] == [[]] * 4
    assert kinds(entries).count("route_up") == 1 and "session_interrupted" not in kinds(entries)
