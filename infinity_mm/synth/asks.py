"""Whether a line asks for something: a question, with its mark or without, or a task, in English or Chinese.

"Based on the chart, list the values." --off with what only leads up to it--> "list the values." --> a task
"There are three dogs." --> neither
"""

from __future__ import annotations

import re

_LEAD = re.compile(
    r"(?:(?:in|based on|according to|using|from|with|on|by|for|looking at|judging (?:by|from)|considering|given|after"
    r"|before|without|within|to|at|as|if|of) [^.,:?!]{1,80}, |please |kindly |now |(?:can|could|would) you (?:please )?"
    r"|(?:briefly|shortly|carefully|precisely) )+",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"(?:describe|name|list|count|identify|explain|read|transcribe|find|locate|compare|tell|say|state|write|give"
    r"|determine|summari[sz]e|extract|estimate|calculate|compute|classify|choose|select|point|predict|infer|translate"
    r"|rank|sort|solve|provide|specify|suggest|look|mention|outline|quote|report|match|sum up|arrange|convert|assess"
    r"|evaluate|analy[sz]e|imagine|put|rewrite|rephrase|paraphrase|simplify|express|compose|enumerate|categori[sz]e"
    r"|organi[sz]e|interpret|decide|verify|recommend|propose|discuss|justify|contrast|distinguish|reconstruct|invent"
    r"|generate|create|indicate|pick)\b",
    re.IGNORECASE,
)
_VERB_OR_NOUN = re.compile(
    r"(?:copy|order|turn|complete|continue|group|label|mark|show|present|place|fill|make|draw|trace|guess|rate|format"
    r"|check|answer|detail|design|plan|measure|break|add|highlight|define|combine|form|render|represent|produce) "
    r"(?:the|this|that|these|those|all|each|every|any|both|a|an|me|us|its|their|his|her|in|out|down|one|two|three|what"
    r"|which|how|why|where|who|whether)\b",
    re.IGNORECASE,
)
_INTERROGATIVE = re.compile(
    r"(?:(?:what|which|who|whom|whose|why)\b"
    r"|(?:what|which|where|when|how|who|why)(?:['\u2019]s|['\u2019]re)? "
    r"(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had|many|much|old|tall|far|large|big|long|high"
    r"|wide|deep|often|fast|heavy|full|hot|cold|likely)\b"
    r"|(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had) (?:the|there|this|that|these|those|any"
    r"|all|both|each|every|a|an|it|he|she|they|you|we|one|some|someone|anyone|somebody|anybody|people|most)\b"
    r"|(?:in|on|at|from|to|by|with|for|of|under|near|around|during|through|onto|into|behind) "
    r"(?:what|which|whom|whose|how many|how much)\b)",
    re.IGNORECASE,
)
_CHINESE_VERB = (
    r"(?:描述|列出|列举|说明|指出|解释|计算|比较|识别|读出|读一读|写出|写一|写下|数一数|数出|找出|找到|说出|说一|说说|讲一|讲讲|讲述"
    r"|编一|判断|估计|估算|概括|总结|归纳|翻译|预测|推测|推断|分析|选出|选择|排列|排序|标出|圈出|给出|提供|整理|提取|提炼|转录|抄写|抄录"
    r"|转换|改写|续写|补全|填写|评价|评估|介绍|阐述|简述|想象|设计|猜|起一|取一|拟一|区分|对比|确定|回答|生成|制作|列一)"
)
_CHINESE_TASK = re.compile(
    r"请(?!勿|不要|别)"
    rf"|(?:(?:根据|按照|依据|依照|参照|结合|通过|在|从|对|为|就|针对)[^\uff0c,。]{{1,24}}?[\uff0c,]?)?"
    rf"(?:(?:简要|详细|仔细|准确|依次|逐一|逐行|逐条|逐项|尽量|尽可能|试着?)地?)*{_CHINESE_VERB}"
    r"|用[^\uff0c,。]{0,10}(?:词|个字|句|话|语言|文字|数字|中文|汉语|英文|英语|格式|形式|表格|列表|JSON)"
    r"|以[^\uff0c,。]{0,16}(?:格式|形式|方式|表格|列表|顺序|口吻|身份|角度|JSON)"
    r"|按照?[^\uff0c,。]{1,20}(?:排列|排序|排成|排好|分类|分组|归类|整理|列出|描述|说明)"
    r"|把(?!手|柄|守|握)[^。]{2,}|将(?!军|领|要|会|来|士|近)[^。]{2,}"
    r"|[给为][这图该]",
    re.IGNORECASE,
)
_CHINESE_WORD = re.compile(
    r"(?:什么|谁|哪|多少|多[大高长远宽深重久]|怎么|怎样|如何|为何|是否|是不是|有没有|能不能|会不会)|[吗呢么]。?$|几[^。]*[^。]$"
)
_CHINESE_NO_QUESTION = re.compile(
    r"没有?什么|(?:什么|谁|哪[里个儿]?)[都也]|无论|不管|不多|几乎|几何|茶几|好几|十几|几[十百千万]"
)


def asks(text: str) -> bool:
    """Whether the one line `text` asks for something. A statement does not, even one about a question."""
    if text.endswith(("?", "\uff1f")):
        return True
    if text.isascii() or text[:1].isascii():
        lead = _LEAD.match(text)
        rest = text[lead.end() :] if lead else text
        if any(form.match(rest) for form in (_VERB, _VERB_OR_NOUN, _INTERROGATIVE)) or _INTERROGATIVE.match(
            text
        ):
            return True
    return bool(_CHINESE_TASK.match(text)) or bool(_CHINESE_WORD.search(_CHINESE_NO_QUESTION.sub("", text)))
