"""Expected spoken forms as patterns, and the comparison of a reading with them.

In an expected form `{a|b}` are alternatives, `[VTV]` are letters spelled by any of their usual
names, `<word>` is a foreign word as it is written. Case, punctuation, the place of tone marks and
variants of one number word do not count.
"""
import re

from higgs_vi.text import clean_text, nfc, place_tone

_NAMES = {
    "a": "a ây",
    "b": "bê bờ bi",
    "c": "c xê cờ xi",
    "d": "d đê dê dờ đờ đi di",
    "đ": "đ đê đờ",
    "e": "e i ê",
    "f": "f ép ép_phờ ép_phì phờ",
    "g": "g gờ gi giê ghi gê",
    "h": "h hát hắt ếch hờ",
    "i": "i ai",
    "j": "j gi giây chây",
    "k": "k ca cây cờ kây",
    "l": "l lờ en_lờ e_lờ eo",
    "m": "m mờ em em_mờ",
    "n": "n nờ en en_nờ anh_nờ",
    "o": "o ô âu",
    "p": "p pê pi pờ",
    "q": "q quy cu kiu",
    "r": "r rờ a e_rờ a_rờ",
    "s": "ét ét_sờ sờ ét_xờ",
    "t": "t tê ti tờ",
    "u": "u iu diu",
    "v": "v vê vi vờ",
    "w": "w vê_kép vê_đúp đắp_liu đáp_liu",
    "x": "x ích ít xờ éc",
    "y": "y i_dài quai oai",
    "z": "z dét zét giét di",
}
_SAME = (
    ("ngàn", "nghìn"), ("lẻ", "linh"), ("tỉ", "tỷ"), ("kỉ", "kỷ"), ("uỷ", "ủy"),
    ("xăng ti", "xen ti"),
    ("kí lô", "ki lô"), ("gigabyte", "gi ga bai"), ("terabyte", "tê ra bai"),
    ("megabyte", "mê ga bai"),
    ("ghi ga", "gi ga"), ("hertz", "héc"), ("hẹc", "héc"), ("volt", "vôn"), ("watt", "oát"),
    ("euro", "ơ rô"),
    ("đô la mỹ", "đô la"), ("đô la mĩ", "đô la"), ("yên nhật", "yên"), ("hec ta", "héc ta"),
    ("mươi bốn", "mươi tư"), ("linh tư", "linh bốn"), ("giờ không phút", "giờ"))


def canonical(said: str) -> str:
    "The words of `said` in lower case, with one spelling for equivalent forms."
    letters = "".join(c if c.isalnum() else " " for c in nfc(re.sub("</?en>", " ", said)).lower())
    text = f" {' '.join(map(place_tone, letters.split()))} "
    for variant, one in _SAME:
        text = re.sub(rf"(?<= ){variant}(?= )", one, text)
    empty = r"(nghìn|triệu|tỷ)(?: không (?:trăm|nghìn|triệu))+(?= (?!phẩy|chấm))"
    text = re.sub(empty, r"\1", text)
    text = re.sub(r"(giờ(?: \w+){1,3}) phút(?= )", r"\1", text)
    text = re.sub(r"(?<= giờ) không (?=\w+ )", " ", text)
    return " ".join(text.split())


def _piece(token: str) -> str:
    "One token of an expected form as a regular expression over canonical words."
    if token in "{|}":
        return {"{": "(?:", "|": "|", "}": ")"}[token]
    if token[0] == "[":
        spelled = (_NAMES.get(c, c).split() for c in token[1:-1].lower() if c != " ")
        choices = ("(?:" + "|".join(names).replace("_", " ") + ")" for names in spelled)
        return r"\s*".join(choices) + r"\s*"
    if token[0] == "<":
        return r"\s*" + re.escape(canonical(token[1:-1])).replace(r"\ ", r"\s*") + r"\s*"
    words = canonical(token)
    return (
        (r"\s*" if token[0] == " " else "")
        + re.escape(words)
        + (r"\s*" if token[-1] == " " else "")
    )


def matches(said: str, expected: str) -> bool:
    "True if `said` is one of the readings that `expected` allows."
    tokens = re.findall(r"[{|}]|\[[^\]]*\]|<[^>]*>|[^{|}\[\]<>]+", expected)
    pattern = "".join(map(_piece, tokens))
    return bool(re.fullmatch(rf"\s*(?:{pattern})\s*", canonical(said)))


def engine_words(engine, text: str) -> str:
    "The words that sea-g2p alone produces for `text`."
    said = nfc(engine.normalize(text))
    return clean_text(said) if any(c.isalnum() for c in said) else ""
