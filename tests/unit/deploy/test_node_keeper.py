from deploy.node_keeper import FIRST_WAIT_S, LONGEST_WAIT_S, NodeKeeper


class _Node:
    def __init__(self) -> None:
        self.name = "node-0"
        self.code: int | None = None
        self.serves = True
        self.starts = 0

    def exit_code(self) -> int | None:
        return self.code

    def start(self) -> None:
        self.starts += 1
        self.code, self.serves = None, False

    def is_ready(self) -> bool:
        return self.serves

    def last_words(self) -> str:
        return "  its last line"


def test_a_killed_node_is_told_of_and_starts_again_after_a_moment() -> None:
    node, said = _Node(), list[str]()
    keeper = NodeKeeper([node], said.append)
    keeper.look(0.0)
    node.code = -9
    keeper.look(1.0)
    assert said == ["node-0 was killed by signal 9; it starts again in 2 s"]
    keeper.look(1.0 + FIRST_WAIT_S - 0.1)
    assert node.starts == 0
    keeper.look(1.0 + FIRST_WAIT_S)
    assert node.starts == 1
    keeper.look(4.0)
    node.serves = True
    keeper.look(5.0)
    keeper.look(6.0)
    assert said[1:] == ["node-0 serves again"]


def test_waits_double_until_it_serves_again() -> None:
    node, said = _Node(), list[str]()
    keeper = NodeKeeper([node], said.append)
    waits, now_s = [], 0.0
    for _ in range(7):
        node.code = 1
        keeper.look(now_s)
        began_s, starts = now_s, node.starts
        while node.starts == starts:
            now_s += 0.5
            keeper.look(now_s)
        waits.append(now_s - began_s)
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_WAIT_S, LONGEST_WAIT_S]
    assert said[0] == "  its last line\nnode-0 ended with exit code 1; it starts again in 2 s"
    node.serves = True
    keeper.look(now_s)
    node.code = -11
    keeper.look(now_s)
    assert said[-1].endswith("starts again in 2 s")


def test_a_node_that_was_asked_to_end_stays_out() -> None:
    node, said = _Node(), list[str]()
    keeper = NodeKeeper([node], said.append)
    node.code = 0
    for now_s in range(100):
        keeper.look(float(now_s))
    assert node.starts == 0
    assert said == ["node-0 was asked to end, and stays out"]
