"""Bytes of tokens, which tokens are the same, and where two tokenizers of one text meet, against counting by hand."""

import pytest
import torch
from other_tokenizers import BUILDERS, SMILE, TEXTS, WRITTEN_OUT, build_other, build_piece, rows_of

from llm_finetuner.errors import ModelError
from llm_finetuner.models.vocabulary import Vocabulary, homes, pair
from llm_finetuner.objectives.across import fold
from llm_finetuner.teachers.spans import line_up


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build() for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def vocabularies(tokenizers):
    return {name: Vocabulary(tokenizer) for name, tokenizer in tokenizers.items()}


# ---- tokens as bytes


@pytest.mark.parametrize("name", BUILDERS)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(vocabularies, name):
    vocabulary = vocabularies[name]
    for text, ids in zip(TEXTS, vocabulary.encode(TEXTS), strict=True):
        lead = b" " if vocabulary.blank else b""
        assert vocabulary.write(ids) == lead + text.encode()
    assert vocabulary.blank == (name not in ("bytes", "other"))


def test_special_tokens_stand_for_no_bytes_and_their_names_are_text(tokenizers, vocabularies):
    vocabulary = vocabularies["other"]
    assert [vocabulary.pieces[i] for i in (0, 1, 2)] == [None, None, None]
    assert vocabulary.roles == {"bos": 0, "eos": 1, "pad": 2} and vocabulary.front == 0
    for name in ("bytes", "other", "pieces"):
        (ids,) = vocabularies[name].encode([WRITTEN_OUT])
        assert vocabularies[name].write(ids).decode().strip() == WRITTEN_OUT
    assert 1 in tokenizers["other"](WRITTEN_OUT)["input_ids"]  # the user's own tokenizer is as it was


def test_a_tokenizer_that_tells_no_bytes_is_refused():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2}, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece does not tell the bytes"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"))


def test_pairs_are_one_to_one_and_write_the_same(vocabularies):
    for student in vocabularies.values():
        for teacher in vocabularies.values():
            pairing = pair(student, teacher)
            others = [pairing.table[i] for i in pairing.shared]
            assert len(set(others)) == len(others) > 50
            for ours, theirs in zip(pairing.shared, others, strict=True):
                assert student.pieces[ours] == teacher.pieces[theirs]
            assert pairing.table[student.roles["eos"]] == teacher.roles["eos"]
        assert pair(student, student).table == list(range(len(student)))


def test_tokens_are_brought_to_the_token_that_the_student_would_begin_with(vocabularies):
    """The teacher's distribution over whole words, told in the student's first tokens."""
    student, teacher = vocabularies["bytes"], vocabularies["other"]
    pairing = pair(student, teacher)
    own, theirs = homes(student, teacher, pairing)
    words = [" nowhere", " there", " here", " house", " blanks", " what", " lines"]
    alone = [teacher.encode([word])[0] for word in words]
    words = [word for word, ids in zip(words, alone, strict=True) if len(ids) == 1]
    unknown = [word for word in words if word.encode() not in student.pieces]
    assert len(unknown) > 2
    probabilities = torch.softmax(torch.randn(len(words), dtype=torch.float64), 0)
    logits = torch.full((1, len(teacher)), -torch.inf, dtype=torch.float64)
    wanted = torch.zeros(max(*own, *theirs) + 1, dtype=torch.float64)
    for word, p in zip(words, probabilities, strict=True):
        logits[0, teacher.encode([word])[0][0]] = p.log()
        wanted[own[student.encode([word])[0][0]]] += p
    folded = fold(logits, torch.tensor(theirs), len(wanted))[0].exp()
    assert torch.allclose(folded[wanted > 0], wanted[wanted > 0], atol=1e-12)


# ---- where two tokenizers meet


def naive_meeting(row, line, student, teacher):
    """The ends of both by counting bytes, the blank before a text left out, BOS and EOS as no text."""

    def ends(ids, vocabulary):
        at, found, begun = 0, [], False
        for n, i in enumerate(ids):
            piece = vocabulary.pieces[i]
            if piece is None:
                at += 1 if n else 0
            else:
                at += len(piece) - (not begun and vocabulary.blank and piece[:1] == b" ")
                begun = True
            found.append(at)
        return found

    own, other = ends(row, student), ends(line.ids, teacher)
    last_own = {end: i for i, end in enumerate(own)}
    last_other = {end: j for j, end in enumerate(other)}
    return [(i, last_other[end]) for end, i in sorted(last_own.items()) if end in last_other]


@pytest.mark.parametrize("theirs", BUILDERS)
@pytest.mark.parametrize("ours", BUILDERS)
def test_both_read_the_same_text_and_meet_where_both_end(vocabularies, ours, theirs):
    student, teacher = vocabularies[ours], vocabularies[theirs]
    pairing = pair(student, teacher)
    rows = [row["input_ids"] for row in rows_of(student, [t.strip() for t in TEXTS])]
    for text, row, line in zip(TEXTS, rows, line_up(rows, student, teacher, pairing), strict=True):
        assert line.readable
        assert teacher.write(line.ids).decode().strip() == text.strip()
        assert line.ids[-1] == teacher.roles["eos"]
        assert (line.ids[0] == teacher.roles.get("bos")) == (
            teacher.front is not None or (student.front is not None and "bos" in teacher.roles)
        )
        common = naive_meeting(row, line, student, teacher)
        assert set(line.meets) <= set(common)
        missed = set(common) - set(line.meets)
        assert all(i + 1 == len(row) or i in (0, 1) for i, _ in missed)
        spans = [
            (i, i2, j, j2)
            for (i, j), (i2, j2) in zip(common, common[1:], strict=False)
            if (i2 - i, j2 - j) != (1, 1) or pairing.table[row[i2]] != line.ids[j2]
        ]
        assert line.spans == [s for s in spans if max(s[1] - s[0], s[3] - s[2]) <= 16]
        for i, i2, j, j2 in line.spans:
            same = student.write(row[i + 1 : i2 + 1]).strip(), teacher.write(line.ids[j + 1 : j2 + 1]).strip()
            assert same[0] == same[1]


def test_a_row_cut_inside_a_character_still_meets(vocabularies):
    student, teacher = vocabularies["bytes"], vocabularies["pieces"]
    ids = student.encode(["the dog " + SMILE + " sees a tree " + SMILE])[0]
    start = next(n for n, i in enumerate(ids) if student.pieces[i] == b"\x9f")
    (line,) = line_up([ids[start:-2]], student, teacher, pair(student, teacher))
    assert line.readable and teacher.write(line.ids) == b"  sees a tree "
    assert len(line.meets) > 3
    middle = student.encode(["the dog "])[0] + ids[start : start + 1] + student.encode([" sees"])[0]
    (line,) = line_up([middle], student, teacher, pair(student, teacher))
    assert teacher.write(line.ids) == b" the dog  sees" and line.meets
    for i, i2, j, j2 in line.spans:  # no span over the byte that only the student sees
        assert student.write(middle[i + 1 : i2 + 1]) == teacher.write(line.ids[j + 1 : j2 + 1])


def test_special_tokens_go_by_role_or_name_or_not_at_all():
    marks = ("<s>", "</s>", "<pad>", "<|turn|>", "<|only|>")
    student = Vocabulary(build_other(specials=marks))
    teacher = Vocabulary(build_other(300, specials=(*marks[:3], "<|new|>", "<|turn|>")))
    assert pair(student, teacher).table[3] == 4
    text = student.encode(["red dog"])[0]
    (line,) = line_up([[0, 3, *text, 1, *text, 3]], student, teacher, pair(student, teacher))
    told = teacher.encode(["red dog"])[0]
    assert line.ids == [0, 4, *told, 1, *told, 4]
    whole, cut = line_up([[*text, 3], [*text, 4, *text]], student, teacher, pair(student, teacher))
    assert cut.ids == [0, *told] and cut.readable  # it is read up to what the teacher does not know
    assert cut.meets == whole.meets[:-1] and cut.spans == whole.spans


def test_a_text_that_the_teacher_changes_is_not_known(vocabularies):
    student, teacher = vocabularies["bytes"], Vocabulary(build_piece(fallback=False))
    rows = [row["input_ids"] for row in rows_of(student, ["the dog \u4e2d", "the dog"])]
    lines = line_up(rows, student, teacher, pair(student, teacher))
    assert [line.readable for line in lines] == [False, True] and not lines[0].meets
