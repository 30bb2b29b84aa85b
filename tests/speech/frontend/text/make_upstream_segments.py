"""Makes tests/assets/upstream_segments.json: texts with the segments and ids that upstream's front end gives.

The texts are made from the templates below. Upstream's own code reads them: `CosyVoiceFrontEnd` and
`CosyVoice3Tokenizer` of a checkout of CosyVoice (ace7c47), with wetext 0.1.8, inflect 7.3.1, regex and
transformers 4.51.3. Nothing of that code is in this file. The parts of upstream that its text does not need
(whisper, tiktoken, torchaudio) are replaced with empty modules.

    python tests/speech/frontend/text/make_upstream_segments.py CHECKOUT TOKENIZER OUT.json [SEED [COUNT]]

TOKENIZER is the folder CosyVoice-BlankEN of a voice. An entry of the result has `text`; `up`, the segments;
`tok`, their ids; and `err`, the exception where upstream raised one.
"""

import json
import logging
import random
import sys
import types
from pathlib import Path

WORDS = {
    "who": ["the captain", "Dr. Hale", "nobody", "a Mr. Ito", "our team", "She", "NASA", "Mrs. O'Neil"],
    "did": ["wrote down", "measured", "sold", "ordered", "counted", "lost", "paid for", "saw"],
    "thing": ["boats", "copies", "apples", "pages", "tickets", "km of rope", "GB", "bottles"],
    "place": [
        "the pier",
        "Room 12B",
        "St. John's",
        "5th Avenue",
        "Berlin",
        "the U.S.",
        "São Paulo",
        "Zürich",
    ],
    "谁": ["船长", "她", "工程师们", "小明", "我们公司", "老师", "Tom", "王先生"],
    "做": ["买了", "记录了", "看到", "修好了", "丢了", "卖出", "数了", "订了"],
    "物": ["本书", "个苹果", "张票", "台电脑", "公斤大米", "瓶水", "页", "只猫儿"],
    "地": ["码头", "北京", "三楼", "A座", "图书馆", "5号楼", "火车站", "这儿"],
}
UNITS = [
    "km",
    "kg",
    "°C",
    "mph",
    "ml",
    "m²",
    "km²",
    "GB",
    "Hz",
    "kHz",
    "cm",
    "%",
    "km/h",
    "lbs",
    "°F",
    "MB/s",
]
单位 = [
    "公里",
    "千克",
    "℃",
    "℉",
    "米",
    "毫升",
    "平方米",
    "m²",
    "kg",
    "%",
    "元",
    "度",
    "㎡",
    "km/h",
    "GB",
    "层",
]
MONTHS = [
    "January",
    "Feb.",
    "March",
    "April",
    "May",
    "June",
    "July",
    "Aug.",
    "Sept.",
    "October",
    "Nov",
    "December",
]
QUOTES = ['"{}"', "“{}”", "'{}'", "‘{}’", "«{}»", "({})", "[{}]", "{{{}}}", "<{}>", "*{}*", "_{}_", "`{}`"]
引号 = [
    "“{}”",
    "《{}》",
    "「{}」",
    "（{}）",
    "【{}】",
    '"{}"',
    "({})",
    "‘{}’",
    "〈{}〉",
    "`{}`",
    "——{}——",
    "[{}]",
]
TAGS = [
    "[breath]",
    "[laughter]",
    "<strong>{}</strong>",
    "[AY1]",
    "[M][AY0][N][UW1][T]",
    "[sigh]",
    "<laughter>{}</laughter>",
]
ENDS = [".", "!", "?", "...", "", ";", ":", "?!", ",", '."', " .", "…", ".\n", "!!", " -", "—"]
结尾 = ["。", "！", "？", "……", "", "；", "：", "，", "。”", "、", ".", "!", "\n", "～", "。。", "，，"]


def number(rng):
    """Return a number as people write it."""
    n = rng.choice([rng.randrange(10), rng.randrange(100), rng.randrange(3000), rng.randrange(10**7)])
    return rng.choice(
        [
            f"{n}",
            f"{n:,}",
            f"{n}.{rng.randrange(100)}",
            f"-{n}",
            f"{n}/{rng.randrange(2, 9)}",
            f"{n % 100}-{n % 100 + 3}",
            f"{n % 100:02d}",
            f"+{n}",
            f"{n % 200}th",
            f"{n % 100}%",
            f"${n}.{rng.randrange(100):02d}",
            f"€{n}",
            f"£{n % 1000}",
            f"¥{n}",
            f"0.{n}",
            f"{n % 60}:{n % 59:02d}",
            f"{n}x{n % 7}",
            f"~{n}",
            f"1e{n % 9}",
            f"#{n % 100}",
        ]
    )


def date(rng):
    """Return a date or a time as people write it."""
    y, m, d = rng.randrange(1900, 2100), rng.randrange(1, 13), rng.randrange(1, 29)
    h, minute = rng.randrange(24), rng.randrange(60)
    return rng.choice(
        [
            f"{y}-{m:02d}-{d:02d}",
            f"{m}/{d}/{y}",
            f"{MONTHS[m - 1]} {d}, {y}",
            f"{d} {MONTHS[m - 1]} {y}",
            f"{d}.{m}.{y}",
            f"{h}:{minute:02d}",
            f"{h % 12 + 1}:{minute:02d} {rng.choice(['am', 'PM', 'p.m.'])}",
            f"{y}s",
            f"{y}年{m}月{d}日",
            f"{m}月{d}号",
            f"{h}点{minute}分",
            f"{y}/{m}/{d}",
        ]
    )


def english(rng):
    """Return an English sentence."""
    w = {key: rng.choice(found) for key, found in WORDS.items()}
    n, unit, day = number(rng), rng.choice(UNITS), date(rng)
    body = rng.choice(
        [
            f"{w['who']} {w['did']} {n} {w['thing']} in {w['place']}",
            f"On {day} {w['who']} {w['did']} it",
            f"It is {n}{rng.choice(['', ' '])}{unit} at {w['place']}, i.e. more than {number(rng)}",
            f"No. {n} is {w['who']}'s; call 555-{rng.randrange(1000, 9999)} or +1 ({rng.randrange(200, 999)}) 555-0199",
            f"Mail {w['who'].split()[-1].lower()}@example.com or see https://example.org/a?b={n}&c=1",
            f"{w['who']} said: {rng.choice(QUOTES).format(w['who'] + ' ' + w['did'] + ' ' + n)}, then left",
            f"{rng.choice(TAGS).format(w['thing'])} {w['who']}, {w['did']} {w['thing']}",
            f"A{n} & B{rng.randrange(9)} = C{rng.randrange(9)} + 2*{n} (v{rng.randrange(9)}.{rng.randrange(9)}.{rng.randrange(9)})",
            f"{w['who']} didn't—couldn't—say why; it's {w['place']} - or {w['place']} / {w['who']}",
            f"{w['who']} met {w['谁']} at {day}",
            f"Résumé, naïve, coöperate: {w['who']} {w['did']} {n}",
        ]
    )
    return body + rng.choice(ENDS)


def chinese(rng):
    """Return a Chinese sentence."""
    w = {key: rng.choice(found) for key, found in WORDS.items()}
    n, unit, day = number(rng), rng.choice(单位), date(rng)
    body = rng.choice(
        [
            f"{w['谁']}在{w['地']}{w['做']}{n}{w['物']}",
            f"{day}，{w['谁']}{w['做']}{rng.randrange(200)}{w['物']}",
            f"今天气温{n}{unit}，面积{rng.randrange(1000)}{rng.choice(单位)}",
            f"{w['谁']}说：{rng.choice(引号).format(w['谁'] + w['做'] + str(n) + w['物'])}，然后走了",
            f"请拨打{rng.choice(['13800138000', '010-12345678', '400-123-4567', '110'])}，{w['谁']}在等",
            f"{w['谁']} 用 Python {rng.randrange(9)}.{rng.randrange(20)} 写 的 {w['thing']} - {w['place']}",
            f"{rng.choice(TAGS).format(w['物'])}{w['谁']}，{w['做']}{w['物']}",
            f"x²+y³={n}，{w['谁']}——{w['做']}——{w['物']}",
            f"第{rng.randrange(1, 200)}{rng.choice(['章', '名', '页', '届'])}：{w['谁']}、{w['谁']}和{w['地']}",
            f"比分是{rng.randrange(9)}:{rng.randrange(9)}，占{rng.randrange(9)}/{rng.randrange(2, 9)}，约{n}倍",
            f"www.example.com 上有{n}条，价格￥{rng.randrange(1000)}.{rng.randrange(100):02d}",
        ]
    )
    return body + rng.choice(结尾)


def other(rng):
    """Return a sentence in another language or of odd characters."""
    n = number(rng)
    return rng.choice(
        [
            f"これは{rng.randrange(100)}番目のテストです。{date(rng)}",
            f"カタカナ と ひらがな {n}",
            f"Er kostet {rng.randrange(100)},50 € und wiegt {n} g.",
            f"Il y a {n} chats à l'école n° {rng.randrange(9)}.",
            f"¿Cuántos? ¡{n} niños!",
            f"안녕하세요 {n}",
            "안녕하세요 여러분",
            f"Привет, {n} мир",
            f"٣ + ٤ = {n}",
            f"ｆｕｌｌ　ｗｉｄｔｈ １２３ {n}",
            f"😀 {n}",
            f"m {rng.choice('²³¹①½')} {n}",
            f"{rng.choice('①②½¾²³')}是{n}",
            f"5{rng.choice('℃℉㎡㎏№㎞‰°')} {n}",
            f"\t{n}  {n}\n\n{n} ",
            f"“{n}”",
            n,
            f". {n}",
            f'"{n}." he said',
            f"...{n}!",
        ]
    )


def paragraph(rng):
    """Return several sentences, with what stands between them in people's files."""
    make, between = rng.choice([(english, [" ", "  ", "\n", "\n\n", ""]), (chinese, ["", "\n", " ", "\n\n"])])
    count = rng.randrange(2, 12)
    return "".join(make(rng) + rng.choice(between) for _ in range(count))


def mixed(rng):
    """Return sentences of several languages."""
    makers = (english, chinese, other)
    return rng.choice([" ", "", "\n"]).join(rng.choice(makers)(rng) for _ in range(rng.randrange(2, 5)))


def texts(seed, count):
    """Return different texts of all kinds."""
    rng = random.Random(seed)
    makers = (english, english, english, chinese, chinese, chinese, other, paragraph, paragraph, mixed)
    found = {}
    while len(found) < count:
        found.setdefault(makers[len(found) % len(makers)](rng))
    return list(found)


def upstream(checkout, tokenizer):
    """Return upstream's front end with all that its text needs."""
    sys.path.insert(0, str(checkout))
    import inflect
    from transformers import AutoTokenizer  # noqa: F401  looks for torchaudio, so before it is replaced
    from wetext import Normalizer

    for name in ("whisper", "whisper.tokenizer", "tiktoken", "torchaudio", "torchaudio.compliance"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["whisper.tokenizer"].Tokenizer = None
    sys.modules["torchaudio.compliance.kaldi"] = types.ModuleType("torchaudio.compliance.kaldi")
    files = types.ModuleType("cosyvoice.utils.file_utils")
    files.load_wav = None
    files.logging = logging
    sys.modules[files.__name__] = files
    from cosyvoice.cli.frontend import CosyVoiceFrontEnd
    from cosyvoice.tokenizer.tokenizer import CosyVoice3Tokenizer

    frontend = CosyVoiceFrontEnd.__new__(CosyVoiceFrontEnd)  # its constructor opens models of sound
    frontend.tokenizer = CosyVoice3Tokenizer(str(tokenizer))
    frontend.allowed_special = "all"
    frontend.inflect_parser = inflect.engine()
    frontend.zh_tn_model = Normalizer(remove_erhua=False)
    frontend.en_tn_model = Normalizer()
    frontend.text_frontend = "wetext"
    return frontend


def read(frontend, text):
    """Return what upstream makes of a text."""
    try:
        segments = frontend.text_normalize(text, split=True)
    except Exception as error:
        return {"text": text, "up": None, "err": repr(error), "tok": None}
    ids = [frontend.tokenizer.encode(segment) for segment in segments]
    return {"text": text, "up": segments, "err": None, "tok": ids}


if __name__ == "__main__":
    checkout, tokenizer, out = map(Path, sys.argv[1:4])
    seed, count = (int(sys.argv[4]), int(sys.argv[5])) if len(sys.argv) > 5 else (14, 200)
    frontend = upstream(checkout, tokenizer)
    rows = [
        json.dumps(read(frontend, text), ensure_ascii=False, separators=(",", ":"))
        for text in texts(seed, count)
    ]
    out.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
