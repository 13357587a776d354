"""Input streams: every compression, pieces in a row, damage, memory."""

import bz2
import gzip
import lzma

import pytest
import zstandard

from minimoe_dist.corpus.sources import TextFileSource, TextSource
from minimoe_dist.corpus.streams import InputStream, check_encoding
from tests.corpus.sources.documents import read

TEXT = b"".join(b"Line %d of a text in several pieces.\n\n" % n for n in range(20_000))
COMPRESSORS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstandard": zstandard.ZstdCompressor().compress,
    "long zstandard": zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28)
    ).compress,
}


def whole(path, size=70_000):
    with InputStream(str(path)) as stream:
        pieces = list(iter(lambda: stream.read(size), b""))
        assert all(len(piece) == size for piece in pieces[:-1])
        return b"".join(pieces), stream


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compressed_files_are_read_whatever_their_name(tmp_path, kind):
    path = tmp_path / "text"
    path.write_bytes(COMPRESSORS[kind](TEXT))
    data, stream = whole(path)
    assert data == TEXT
    assert stream.damage is None
    assert kind.endswith(stream.compression)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compressed_pieces_in_a_row_are_one_file(tmp_path, kind):
    compress = COMPRESSORS[kind]
    path = tmp_path / "text"
    path.write_bytes(b"".join(compress(TEXT[i : i + 99_999]) for i in range(0, len(TEXT), 99_999)))
    assert whole(path)[0] == TEXT


def test_plain_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(TEXT)
    data, stream = whole(path)
    assert (data, stream.compression) == (TEXT, None)


def test_an_empty_file_gives_nothing(tmp_path):
    path = tmp_path / "text.gz"
    path.touch()
    assert whole(path)[0] == b""


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_truncated_files_are_read_to_their_end_and_noted(tmp_path, kind):
    path = tmp_path / "text"
    path.write_bytes(COMPRESSORS[kind](TEXT)[:-12])
    data, stream = whole(path)
    assert TEXT.startswith(data)
    assert stream.damage == f"damaged {stream.compression} data: it ends too early"


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_bytes_after_the_compressed_data_are_noted(tmp_path, kind):
    path = tmp_path / "text"
    path.write_bytes(COMPRESSORS[kind](TEXT) + b"no compressed data")
    data, stream = whole(path)
    assert data == TEXT
    assert stream.damage.startswith(f"damaged {stream.compression} data: ")


def test_zeros_after_the_compressed_data_are_padding(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(TEXT) + bytes(512))
    assert whole(path)[1].damage is None


def test_damage_is_a_problem_of_the_file(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"One.\n\nTwo.\n")[:-6])
    documents, problems = read(TextSource(), path)
    assert len(documents) == 2
    assert problems.counts == {"damaged_files": 1}
    with pytest.raises(ValueError, match=f"{path}:4: byte 11: damaged gzip data"):
        read(TextSource(), path, strict=True)


def test_blocks_of_compressed_files_carry_their_bytes_and_the_files_size(tmp_path):
    plain, packed = tmp_path / "text", tmp_path / "text.bz2"
    plain.write_bytes(TEXT)
    packed.write_bytes(bz2.compress(TEXT))
    cut = [
        list(TextSource(1 << 16, 1 << 10).blocks(InputStream(str(path))))
        for path in (plain, packed)
    ]
    assert [b.read() for b in cut[0]] == [b.read() for b in cut[1]]
    assert all(block.data is None for block in cut[0])
    for blocks, path in zip(cut, (plain, packed), strict=True):
        assert sum(block.progress for block in blocks) == path.stat().st_size


def test_a_place_without_its_data_is_small(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(TEXT))
    (block,) = TextFileSource().blocks(InputStream(str(path)))
    assert block.without_data().data is None
    assert block.without_data().offset == block.offset


@pytest.mark.parametrize("first", [0x50, 0x5A, 0x5F])
def test_skippable_frames_before_zstandard_data_are_skipped(tmp_path, first):
    path = tmp_path / "text"
    frame = bytes([first]) + b"\x2a\x4d\x18\x04\0\0\0skip"
    path.write_bytes(frame + COMPRESSORS["zstandard"](TEXT))
    assert whole(path)[0] == TEXT


@pytest.mark.parametrize("end", [b"\r", b"\xe2\x80\xa8", b"\xc2\x85", b"\r\xe2\x80\xa8"])
def test_line_ends_are_found_between_pieces(tmp_path, end):
    path = tmp_path / "text"
    path.write_bytes((b"a" + end) * 50_000)
    with InputStream(str(path)) as stream:
        stream.end_lines()
        assert stream.read(1 << 20) == (b"a" + b"\n" * (2 if end[:2] == b"\r\xe2" else 1)) * 50_000


def test_damage_in_the_middle_costs_what_the_rest_would_have_given(tmp_path):
    text = "".join(f"Line {hash((n, 1)) % 10**15} of a text.\n\n" for n in range(60_000))
    data = bytearray(gzip.compress(text.encode()))
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    path = tmp_path / "text.gz"
    path.write_bytes(data)
    *blocks, damage = TextSource().blocks(InputStream(str(path)))
    read = sum(block.length for block in blocks)
    assert abs(read + damage.damage.lost - len(text)) < 0.1 * len(text)
    assert damage.damage.lost > 0.1 * len(text)


def test_a_byte_order_mark_at_the_beginning_of_a_later_line_is_left_out(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfOne.\n\xef\xbb\xbfTwo.\n")
    assert read(TextFileSource(), path)[0][0].lines == ["One.", "Two."]


@pytest.mark.parametrize("encoding", ["idna", "undefined", "hex", "none\0"])
def test_what_is_no_encoding_of_text_is_refused(encoding):
    with pytest.raises(ValueError, match="is no encoding of text"):
        check_encoding(encoding)
