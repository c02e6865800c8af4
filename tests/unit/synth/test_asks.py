"""What counts as a question or a task in a teacher's reply, and what is a statement."""

from __future__ import annotations

import pytest

from infinity_mm.synth.asks import asks


@pytest.mark.parametrize(
    "text",
    [
        "How many dogs?",
        "How many dogs are there",
        "What is on the table",
        "Is there a dog in the picture",
        "In which corner is the price written",
        "Where is the lamp.",
        "Put the steps in order.",
        "In one sentence, describe what happens.",
        "Based on the chart, list the three largest values.",
        "According to the table, how many cars were sold",
        "Using the map, briefly describe the way to the station.",
        "Please label each part of the engine.",
        "Group the objects by color.",
        "Could you name the two tools on the left.",
        "Order the boxes from small to large.",
        "图中有几只狗\uff1f",
        "图中有几只狗",
        "门是什么颜色",
        "左边的人是谁。",
        "图中的灯是亮着的吗",
        "把图中的表格转换成Markdown。",
        "将图中的文字翻译成英文。",
        "用五个词描述这幅画。",
        "以JSON格式给出发票上的各项内容。",
        "按价格从低到高排列图中的商品。",
        "根据图表\uff0c列出三个最大的值。",
        "从图中找出所有红色的物体。",
        "请简要说明图中发生的事情。",
    ],
)
def test_a_question_or_a_task_asks(text: str) -> None:
    assert asks(text)


@pytest.mark.parametrize(
    "text",
    [
        "There are three dogs.",
        "In the picture, there are three dogs.",
        "The man shows how many fingers he has.",
        "Group of people on a beach.",
        "Label on a bottle of wine.",
        "Order and calm reign in the room.",
        "Based on the chart, sales have doubled.",
        "Can of soda on the table.",
        "When the light turns green, the car goes.",
        "Will Smith is on the poster.",
        "图中有两只狗。",
        "图中有几只狗在草地上奔跑。",
        "图中没有什么特别的东西",
        "把手是银色的。",
        "将军骑着一匹白马。",
        "请勿吸烟",
        "以前这里是一座工厂。",
    ],
)
def test_a_statement_does_not(text: str) -> None:
    assert not asks(text)
