use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::archive::codec::{CHUNK_HEADER_BYTES, Compression, Encoder};
use crate::domain::manifest::Piece;

fn lz4(text: &[u8], info: lz4_flex::frame::FrameInfo) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// A whole stream as one run of bytes.
fn stored(compression: HeaderCompression, text: &[u8]) -> Vec<u8> {
    match compression {
        HeaderCompression::None => text.to_vec(),
        HeaderCompression::Gzip => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        HeaderCompression::Lz4 => {
            lz4(text, lz4_flex::frame::FrameInfo::new().block_mode(lz4_flex::frame::BlockMode::Linked))
        }
        HeaderCompression::Zstd => zstd::encode_all(text, 1).unwrap(),
    }
}

fn decode_with(mut decoder: Decoder, stored: &[u8], fragment: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    for mut input in stored.chunks(fragment) {
        while let Some(text) = decoder.decode(&mut input)? {
            assert!(text.len() <= OUTPUT_BYTES);
            out.extend_from_slice(text);
        }
        assert!(input.is_empty());
    }
    assert_eq!(decoder.stored(), stored.len() as u64);
    decoder.finish().map(|()| out)
}

fn decode(compression: HeaderCompression, stored: &[u8], fragment: usize) -> Result<Vec<u8>, DecodeError> {
    decode_with(Decoder::new(compression).unwrap(), stored, fragment)
}

const COMPRESSED: [HeaderCompression; 3] = [HeaderCompression::Gzip, HeaderCompression::Lz4, HeaderCompression::Zstd];

/// Text that compresses, with some that does not.
fn text(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| if i % 7 < 4 { seed } else { (i * i / 7) as u8 }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn streams_come_back_whatever_the_fragments(seed in any::<u8>(), len in 0usize..600_000, fragment in prop_oneof![1usize..50, 1_000usize..900_000]) {
        let text = text(seed, if fragment < 50 { len / 20 } else { len });
        for compression in COMPRESSED.into_iter().chain([HeaderCompression::None]) {
            let stored = stored(compression, &text);
            prop_assert!(decode(compression, &stored, fragment).unwrap() == text, "{:?}", compression);
        }
    }
}

#[test]
fn a_cut_stream_is_incomplete_wherever_it_is_cut() {
    for compression in COMPRESSED {
        let stored = stored(compression, &text(3, 5_000));
        for cut in 0..stored.len() {
            let found = decode(compression, &stored[..cut], 1 << 20);
            assert!(matches!(found, Err(DecodeError::Incomplete { .. })), "{compression:?} cut at {cut}");
        }
    }
}

#[test]
fn the_end_of_a_zlib_stream_is_checked_and_final() {
    let mut bytes = stored(HeaderCompression::Gzip, b"rows");
    let second = [bytes.clone(), bytes.clone()].concat();
    for fragment in [1, 5, bytes.len(), 1000] {
        let found = decode(HeaderCompression::Gzip, &second, fragment);
        assert!(matches!(found, Err(DecodeError::TrailingData { .. })), "{found:?}");
    }
    *bytes.last_mut().unwrap() ^= 1;
    assert!(matches!(decode(HeaderCompression::Gzip, &bytes, 1000), Err(DecodeError::Corrupt { .. })), "Adler-32");
}

/// `pg_restore` drops what follows a frame within a chunk.
#[test]
fn every_frame_is_decoded() {
    for compression in [HeaderCompression::Zstd, HeaderCompression::Lz4] {
        let (a, b) = (stored(compression, &text(1, 70_000)), stored(compression, &text(2, 10)));
        let whole = [text(1, 70_000), text(2, 10)].concat();
        for fragment in [1, a.len(), a.len() + 1, 1 << 20] {
            assert_eq!(decode(compression, &[&a[..], &b].concat(), fragment).unwrap(), whole, "{compression:?}");
            let junk = decode(compression, &[&a[..], b"junk beyond"].concat(), fragment);
            assert!(matches!(junk, Err(DecodeError::Corrupt { .. })), "{compression:?} {junk:?}");
        }
    }
}

#[test]
fn lz4_frames_of_every_kind() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameInfo};
    let content = text(9, 700_000);
    let mut all = Vec::new();
    let mut frames = 0;
    for block_mode in [BlockMode::Independent, BlockMode::Linked] {
        for block_size in [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max1MB, BlockSize::Max4MB] {
            for checksums in [false, true] {
                let info = FrameInfo::new()
                    .block_mode(block_mode)
                    .block_size(block_size)
                    .block_checksums(checksums)
                    .content_checksum(checksums)
                    .content_size(checksums.then_some(content.len() as u64));
                let frame = lz4(&content, info);
                assert!(decode(HeaderCompression::Lz4, &frame, 10_007).unwrap() == content);
                if checksums {
                    let mut damaged = frame.clone();
                    let at = damaged.len() / 2;
                    damaged[at] ^= 0x10;
                    assert!(decode(HeaderCompression::Lz4, &damaged, 10_007).is_err());
                }
                all.extend_from_slice(&frame);
                frames += 1;
            }
        }
    }
    assert!(decode(HeaderCompression::Lz4, &all, 99_991).unwrap() == content.repeat(frames), "one after the other");
    // A frame that wants a dictionary.
    assert!(
        decode(HeaderCompression::Lz4, &[0x04, 0x22, 0x4d, 0x18, 0x61, 0x40, 1, 2, 3, 4, 5, 0, 0, 0, 0], 99).is_err()
    );
}

/// Linked blocks over many windows: where the decoder juggles its buffers.
#[test]
fn damaged_lz4_frames_of_many_blocks_never_panic() {
    let rows: Vec<u8> = (0..40_000u32).flat_map(|i| format!("{i}\t{}\n", i * i % 97).into_bytes()).collect();
    let frame = stored(HeaderCompression::Lz4, &rows);
    let count = std::env::var("HOLDFAST_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000) / 100;
    let mut decoded = 0;
    for seed in 0..count {
        let mut damaged = frame.clone();
        let mut at = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..1 + seed % 3 {
            let index = at as usize % damaged.len();
            damaged[index] ^= 1 << (at >> 61);
            at = at.rotate_left(21).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        decoded += usize::from(decode(HeaderCompression::Lz4, &damaged, 30_011).is_ok());
    }
    assert!(decoded < count, "the frame was damaged");
}

#[test]
fn a_decoder_that_is_reset_is_as_new() {
    for compression in COMPRESSED {
        let whole = stored(compression, &text(5, 40_000));
        let mut decoder = Decoder::new(compression).unwrap();
        for cut in [whole.len() / 3, whole.len(), 1, whole.len()] {
            let (mut input, mut out) = (&whole[..cut], Vec::new());
            while let Some(text) = decoder.decode(&mut input).unwrap() {
                out.extend_from_slice(text);
            }
            assert_eq!(decoder.finish().is_ok(), cut == whole.len());
            assert!(cut < whole.len() || out == text(5, 40_000));
            decoder.reset().unwrap();
            assert!(decoder.finish().is_err());
        }
    }
}

/// 64 MiB of zeros come out in slices, and only as far as they are asked for.
#[test]
fn a_bomb_goes_off_in_slices() {
    let zeros = vec![0; 64 << 20];
    for compression in COMPRESSED {
        let bomb = stored(compression, &zeros);
        let mut decoder = Decoder::new(compression).unwrap();
        let (mut input, mut len) = (bomb.as_slice(), 0);
        while let Some(text) = decoder.decode(&mut input).unwrap() {
            assert!(text.len() <= OUTPUT_BYTES && text.iter().all(|&byte| byte == 0));
            len += text.len();
            assert!(decoder.buffered_bytes() <= 20 << 20);
        }
        assert_eq!(len, zeros.len());
        decoder.finish().unwrap();
    }
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(24).unwrap();
    encoder.write_all(&text(1, 1000)).unwrap();
    let frame = encoder.finish().unwrap();
    assert!(decode(HeaderCompression::Zstd, &frame, 99).is_ok());
    let limited = Decoder::with_window_log(HeaderCompression::Zstd, 23).unwrap();
    assert!(matches!(decode_with(limited, &frame, 99), Err(DecodeError::Window { limit_mib: 8 })));
}

/// Segments as the exporter writes them, and the pieces that its manifest would name.
fn table(compression: Compression, texts: &[Vec<u8>]) -> (Vec<u8>, Vec<Piece>) {
    let mut encoder = Encoder::new(compression).unwrap();
    let mut out = vec![0xAA; 40];
    encoder.begin_table(&mut out);
    let mut rows = crate::archive::codec::Adler::default();
    let pieces = texts
        .iter()
        .map(|text| {
            let offset = out.len() as u64;
            encoder.write(text, &mut out).unwrap();
            rows = rows.then(encoder.end_segment(&mut out).unwrap());
            Piece { offset, length: out.len() as u64 - offset, bytes: text.len() as u64, rows: 0 }
        })
        .collect();
    encoder.end_table(rows, &mut out).unwrap();
    (out, pieces)
}

fn decode_piece(compression: Compression, piece: Piece, stored: &[u8], fragment: usize) -> Result<Vec<u8>, PieceError> {
    let mut decoder = PieceDecoder::new(compression.header(), piece)?;
    let mut out = Vec::new();
    for mut input in stored.chunks(fragment) {
        while let Some(text) = decoder.decode(&mut input)? {
            assert!(text.len() <= OUTPUT_BYTES);
            out.extend_from_slice(text);
        }
        assert!(input.is_empty());
    }
    decoder.finish().map(|()| out)
}

fn in_archive(archive: &[u8], piece: Piece) -> &[u8] {
    &archive[piece.offset as usize..(piece.offset + piece.length) as usize]
}

const OWN: [Compression; 4] = [
    Compression::None,
    Compression::Gzip { level: 1 },
    Compression::Zstd { level: 1 },
    Compression::Zstd { level: 19 },
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn pieces_come_back_on_their_own(
        lens in proptest::collection::vec(prop_oneof![1 => Just(0usize), 4 => 1usize..400_000], 0..4),
        fragment in prop_oneof![1usize..50, 1_000usize..900_000],
    ) {
        let texts: Vec<_> =
            lens.iter().map(|&len| text(len as u8, if fragment < 50 { len / 40 } else { len })).collect();
        for compression in &OWN[..3] {
            let (archive, pieces) = table(*compression, &texts);
            for (piece, text) in pieces.into_iter().zip(&texts) {
                let found = decode_piece(*compression, piece, in_archive(&archive, piece), fragment).unwrap();
                prop_assert!(&found == text, "{:?}", compression);
            }
        }
    }
}

#[test]
fn a_piece_is_exactly_what_the_manifest_says() {
    for compression in OWN {
        let texts = [text(1, 9_000), text(2, 500_000), text(3, 7_000)];
        let (archive, pieces) = table(compression, &texts);
        let piece = pieces[1];
        let read = |piece: Piece| decode_piece(compression, piece, in_archive(&archive, piece), 10_007);
        assert!(read(piece).unwrap() == texts[1]);
        let Piece { offset, length, bytes, .. } = piece;
        let refused = |piece: Piece, what: &str| assert!(read(piece).is_err(), "{compression}: {what}");
        refused(Piece { bytes: bytes - 1, ..piece }, "more text");
        refused(Piece { bytes: bytes + 1, ..piece }, "less text");
        refused(Piece { length: length - 1, ..piece }, "a byte less");
        refused(Piece { length: length + 1, ..piece }, "a byte more");
        refused(Piece { length: length + pieces[2].length, ..piece }, "the next piece too");
        refused(Piece { offset: offset + 1, ..piece }, "another place");
        let end = archive.len() as u64 - pieces[2].offset;
        let last = Piece { length: end, bytes: pieces[2].bytes + 5, ..pieces[2] };
        refused(last, "with the end of the table");
        let one_more = decode_piece(compression, piece, &archive[offset as usize..(offset + length + 40) as usize], 7);
        assert!(one_more.is_err(), "{compression}: bytes beyond");
    }
    // Deflate blocks that happen to make the text, but are no piece: cut before the flush's empty block.
    let (mut archive, pieces) = table(Compression::Gzip { level: 1 }, &[text(1, 100)]);
    let (start, whole) = (pieces[0].offset as usize, pieces[0].length as usize - CHUNK_HEADER_BYTES);
    archive[start + 1..start + 5].copy_from_slice(&(whole as u32 - 1).to_le_bytes());
    let cut = Piece { length: pieces[0].length - 1, ..pieces[0] };
    let found = decode_piece(Compression::Gzip { level: 1 }, cut, in_archive(&archive, cut), 99);
    assert!(matches!(found, Err(PieceError::NotFlushed)), "{found:?}");
}
