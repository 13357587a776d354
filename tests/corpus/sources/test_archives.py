"""tar and zip files, read member by member."""

import bz2
import gzip
import io
import json
import lzma
import random
import resource
import shutil
import struct
import tarfile
import zipfile
from multiprocessing import get_context

import pytest
import zstandard

from minimoe_dist.corpus.reading import Inputs, ReadingOptions, SentenceReader
from minimoe_dist.corpus.sentences import SentenceRules
from minimoe_dist.corpus.streams import InputStream

PAGES = {f"pages/{n}.txt": f"Page {n} begins here.\nIt has another line.\n" for n in range(20)}
TEXTS = [["Page {n} begins here.", "It has another line."]]


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sentences(path, **options):
    """The sentences of all documents of a file, what was counted and what was lost."""
    inputs = Inputs([str(path)], ReadingOptions(**options))
    reader = SentenceReader(SentenceRules(1, 1), strict=False)
    documents, counts, lost = [], {}, {}
    for work in inputs.work():
        found = reader(work)
        for number, document in enumerate(found.documents):
            if number == 0 and found.continues:
                documents[-1] += document
            else:
                documents.append(document)
        counts |= found.problems.counts
        lost |= found.problems.lost
    return documents, counts, lost


def written(tmp_path, data, name="x"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


EXPECTED = [[f"Page {n} begins here.", "It has another line."] for n in range(20)]
CONTAINERS = {
    "tar": tar,
    "tar.gz": lambda members: gzip.compress(tar(members)),
    "tar.xz": lambda members: lzma.compress(tar(members)),
    "tar.bz2": lambda members: bz2.compress(tar(members)),
    "tar.zst": lambda members: zstandard.ZstdCompressor().compress(tar(members)),
    "xz in gz": lambda members: gzip.compress(lzma.compress(tar(members))),
    "tar in tar": lambda members: tar({"a.tar": tar(members)}),
    "tar.xz in tar.gz": lambda members: gzip.compress(tar({"a": lzma.compress(tar(members))})),
    "zip": zipped,
    "gz in tar": lambda m: tar({name: gzip.compress(text.encode()) for name, text in m.items()}),
    "gz in zip": lambda m: zipped({name: gzip.compress(text.encode()) for name, text in m.items()}),
    "tar in zip": lambda members: zipped({"a.tar": tar(members)}),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_member_is_read_as_a_file(tmp_path, kind):
    path = written(tmp_path, CONTAINERS[kind](PAGES))
    assert sentences(path) == (EXPECTED, {}, {})


def test_members_may_be_of_any_kind(tmp_path):
    members = {
        "a.jsonl": json.dumps({"text": "One record."}) + "\n",
        "b.json": json.dumps([{"content": "Another record."}]),
        "c/wiki_00": '<doc id="1" title="T">\nT\n\nAn article.\n</doc>\n',
        "d.txt": "今天北京的天气非常好。我们去公园散步吧！他说这是一个很大的问题。\n".encode("gbk"),
        "e.format": "Kept as. it is\n",
    }
    assert sentences(written(tmp_path, tar(members)))[0] == [
        ["One record."],
        ["Another record."],
        ["An article."],
        ["今天北京的天气非常好。", "我们去公园散步吧！", "他说这是一个很大的问题。"],
        ["Kept as. it is"],
    ]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_that_is_no_text_is_left_out_and_counted(tmp_path, kind):
    members = {
        "a.txt": "A text.\n",
        "b.png": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "c.pdf": b"%PDF-1.7\n" + b"x" * 91,
        "._d.txt": b"\0\5\x16\7",
        "e.txt": "Another text.\n",
    }
    path = written(tmp_path, CONTAINERS[kind](members))
    documents, counts, lost = sentences(path)
    assert documents == [["A text."], ["Another text."]]
    assert counts == {"members_without_text": 1, "members_not_read": 1}
    assert lost == {"members_not_read": 100}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_large_members_give_what_their_files_give(tmp_path, kind):
    text = "".join(f"Line {n} of a member that is large.\n" for n in range(90_000))
    members = {"a.txt": text, "b.txt": "Small.\n", "c.txt": text}
    documents, _, _ = sentences(written(tmp_path, CONTAINERS[kind](members)))
    assert documents == [text.splitlines(), ["Small."], text.splitlines()]


def test_small_members_share_blocks(tmp_path):
    path = written(tmp_path, tar({str(n): "A text.\n" for n in range(1000)}))
    works = list(Inputs([str(path)], ReadingOptions()).work())
    assert sum(bool(work.block.members) for work in works) == 1
    assert sum(work.block.progress for work in works) == path.stat().st_size


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst"])
def test_a_truncated_archive_is_read_to_its_end_and_noted(tmp_path, kind):
    numbers = random.Random(1)
    members = {str(n): f"{numbers.randbytes(40_000).hex()}\n" for n in range(20)}
    data = CONTAINERS[kind](members)
    documents, counts, _ = sentences(written(tmp_path, data[: len(data) // 2]))
    assert 4 < len(documents) < 20
    assert counts["damaged_files"] >= 1


def test_damage_between_members_is_noted(tmp_path):
    data = bytearray(tar(PAGES))
    data[10 * 1024 : 10 * 1024 + 100] = b"\xff" * 100
    documents, counts, _ = sentences(written(tmp_path, bytes(data)))
    assert (documents, counts) == (EXPECTED[:10], {"damaged_files": 1})


def test_a_damaged_member_of_a_zip_file_costs_itself(tmp_path):
    data = bytearray(zipped(PAGES))
    data[data.index(b"pages/3.txt") + 15] ^= 0xFF
    documents, counts, _ = sentences(written(tmp_path, bytes(data)))
    assert (len(documents), counts) == (19, {"damaged_files": 1})


def test_a_zip_files_member_that_bzip2_cannot_unpack_costs_itself(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        for name, text in PAGES.items():
            archive.writestr(name, text)
    data = buffer.getvalue()
    first = data.index(b"BZh")
    documents, counts, _ = sentences(
        written(tmp_path, data[: first + 3] + b"0" + data[first + 4 :])
    )
    assert counts == {"damaged_files": 1} and len(documents) == len(PAGES) - 1


def test_a_zip_files_member_without_a_name_is_no_folder(tmp_path):
    data = zipped({"a": "A text.\n"})
    for head, place in ((b"PK\x03\x04", 26), (b"PK\x01\x02", 28)):
        start = data.index(head) + place
        end = data.index(b"a", start)
        data = data[:start] + bytes(2) + data[start + 2 : end] + data[end + 1 :]
    # The directory has become shorter by a byte, and begins one earlier.
    size, offset = struct.unpack("<II", data[-10:-2])
    data = data[:-10] + struct.pack("<II", size - 1, offset - 1) + data[-2:]
    assert len(sentences(written(tmp_path, data, "x.zip"))[0]) == 1


@pytest.mark.parametrize("change", [(6, b"\xff\x00"), (46, b"\xc1")], ids=["version", "name"])
def test_a_zip_file_whose_directory_is_damaged_is_refused(tmp_path, change):
    offset, damage = change
    data = bytearray(zipped({"é.txt": "A text.\n"}))
    place = data.index(b"PK\x01\x02") + offset
    data[place : place + len(damage)] = damage
    with pytest.raises(ValueError, match="a damaged zip file"):
        sentences(written(tmp_path, bytes(data), "x.zip"))


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"[Content_Types].xml": "", "word/document.xml": ""}, "word processor.*pandoc"),
        ({"mimetype": "application/epub+zip"}, "e-book.*pandoc"),
        ({"archive/data.pkl": ""}, "checkpoint"),
    ],
)
def test_zip_files_that_are_no_archives_of_text_are_refused(tmp_path, members, what):
    with pytest.raises(ValueError, match=what):
        sentences(written(tmp_path, zipped(members)))


def test_a_zip_file_inside_another_file_is_left_out_and_counted(tmp_path):
    path = written(tmp_path, tar({"a.txt": "A text.\n", "b.zip": zipped(PAGES)}))
    documents, counts, _ = sentences(path)
    assert (documents, counts) == ([["A text."]], {"members_not_read": 1})


def test_too_many_layers_of_compression_are_refused(tmp_path):
    data = b"A text.\n"
    for _ in range(5):
        data = gzip.compress(data)
    with pytest.raises(ValueError, match="compressed more than 4 times"):
        InputStream(str(written(tmp_path, data)))


def _peak_while_reading(path, queue):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with InputStream(str(path)) as stream:
        size = sum(map(len, iter(lambda: stream.read(1 << 20), b"")))
    queue.put((size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


BOMBS = {
    "gz": lambda size: gzip.compress(bytes(size)),
    "bz2": lambda size: bz2.compress(bytes(size)),
    "xz": lambda size: lzma.compress(bytes(size), preset=0),
    "zst": lambda size: zstandard.ZstdCompressor().compress(bytes(size)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_memory_does_not_grow_with_what_was_compressed(tmp_path, kind):
    size = 200 << 20
    path = written(tmp_path, BOMBS[kind](size))
    context = get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_peak_while_reading, args=(path, queue))
    process.start()
    read, grown = queue.get()
    process.join()
    shutil.rmtree(tmp_path)
    assert read == size
    assert grown < 64 << 10


HALVES = [dict(list(PAGES.items())[:9]), dict(list(PAGES.items())[9:])]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_tar_files_in_a_row_are_read_one_after_the_other(tmp_path, kind):
    data = b"".join(map(CONTAINERS[kind], HALVES))
    assert sentences(written(tmp_path, data)) == (EXPECTED, {}, {})
    assert sentences(written(tmp_path, data + (b"\n" if kind == "tar" else b"")))[1] == {}


def test_what_follows_a_tar_file_is_lost_by_its_length(tmp_path):
    path = written(tmp_path, tar(PAGES) + "这不是档案。".encode() * 100)
    documents, counts, lost = sentences(path)
    assert (documents, counts) == (EXPECTED, {"damaged_files": 1})
    assert lost == {"damaged_files": 600}


@pytest.mark.parametrize("end", [None, 100])
def test_zip_files_in_a_row_are_refused(tmp_path, end):
    data = zipped(HALVES[0]) + zipped(HALVES[1])[:end]
    with pytest.raises(ValueError, match="several zip files in a row"):
        sentences(written(tmp_path, data))


OUTSIDE = ["../outside.txt", "/tmp/outside.txt", "a/../../../outside.txt", "..\\outside.txt"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_members_of_any_name_are_read_and_none_is_written(tmp_path, kind):
    members = dict(zip(OUTSIDE, PAGES.values(), strict=False))
    folder = tmp_path / "in" / "below"
    folder.mkdir(parents=True)
    path = written(folder, CONTAINERS[kind](members))
    assert sentences(path) == (EXPECTED[: len(OUTSIDE)], {}, {})
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_links_in_a_tar_file_lead_nowhere(tmp_path):
    secret = written(tmp_path, b"What nobody asked for.\nIt lies beside.\n", "secret.txt")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            for target in (str(secret), "secret.txt", "../secret.txt"):
                info = tarfile.TarInfo(f"{number}{target.replace('/', '_')}.txt")
                info.type, info.linkname = kind, target
                archive.addfile(info)
        for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
            info = tarfile.TarInfo(f"device{kind.decode()}.txt")
            info.type = kind
            archive.addfile(info)
    path = written(tmp_path, buffer.getvalue() + tar(PAGES), "x.tar")
    assert sentences(path) == (EXPECTED, {}, {})


def test_a_link_in_a_zip_file_is_no_more_than_its_own_text(tmp_path):
    secret = written(tmp_path, b"What nobody asked for.\nIt lies beside.\n", "secret.txt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(secret))
        for name, text in PAGES.items():
            archive.writestr(name, text)
    found, _, _ = sentences(written(tmp_path, buffer.getvalue(), "x.zip"))
    assert "What nobody asked for." not in {text for document in found for text in document}
