use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::archive::toc::ArchiveVersion;

/// The chunks of a stream, up to the zero length.
fn chunks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    loop {
        assert_eq!(bytes[0], 0, "lengths are positive");
        let len = u32::from_le_bytes(bytes[1..5].try_into().unwrap()) as usize;
        if len == 0 {
            assert_eq!(bytes.len(), 5, "nothing follows the end");
            return chunks;
        }
        chunks.push(bytes[5..5 + len].to_vec());
        bytes = &bytes[5 + len..];
    }
}

/// Decompresses as `pg_restore` does: zstd chunk by chunk, dropping what follows a frame's end in a chunk.
fn read_back(compression: Compression, stream: &[u8]) -> Vec<u8> {
    let chunks = chunks(stream);
    match compression {
        Compression::None => chunks.concat(),
        Compression::Gzip { .. } => {
            let mut out = Vec::new();
            let bytes = chunks.concat();
            let mut decoder = flate2::read::ZlibDecoder::new(bytes.as_slice());
            decoder.read_to_end(&mut out).unwrap();
            assert_eq!(decoder.total_in(), bytes.len() as u64, "one zlib stream and nothing behind it");
            out
        }
        Compression::Zstd { .. } => {
            let mut out = Vec::new();
            let mut decoder = zstd::stream::raw::Decoder::new().unwrap();
            for chunk in chunks {
                let mut input = InBuffer::around(&chunk);
                while input.pos < chunk.len() {
                    let mut piece = vec![0; 64 * 1024];
                    let mut output = OutBuffer::around(piece.as_mut_slice());
                    let left = decoder.run(&mut input, &mut output).unwrap();
                    let produced = output.pos();
                    out.extend_from_slice(&piece[..produced]);
                    if left == 0 {
                        assert_eq!(input.pos, chunk.len(), "a frame ends inside a chunk");
                        break;
                    }
                }
            }
            out
        }
    }
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        (1u32..10).prop_map(|level| Compression::Gzip { level }),
        (1i32..6).prop_map(|level| Compression::Zstd { level }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn segments_in_any_order_are_one_stream(
        compression in compression(),
        texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200_000), 0..5),
        repeat in 1usize..8,
    ) {
        let texts: Vec<Vec<u8>> = texts.into_iter().map(|text| text.repeat(repeat)).collect();
        let mut workers = [Encoder::new(compression).unwrap(), Encoder::new(compression).unwrap()];
        let mut segments: Vec<(Vec<u8>, Adler, Vec<u8>)> = texts.iter().enumerate().map(|(i, text)| {
            let mut out = Vec::new();
            text.chunks(70_000).for_each(|piece| workers[i % 2].write(piece, &mut out).unwrap());
            let adler = workers[i % 2].end_segment(&mut out).unwrap();
            (out, adler, text.clone())
        }).collect();
        segments.reverse();

        let mut stream = Vec::new();
        workers[0].begin_table(&mut stream);
        let mut expected = Vec::new();
        let mut rows = Adler::default();
        for (out, adler, text) in segments {
            stream.extend_from_slice(&out);
            expected.extend_from_slice(&text);
            rows = rows.then(adler);
        }
        workers[0].end_table(rows, &mut stream).unwrap();
        expected.extend_from_slice(ROWS_END);
        prop_assert!(read_back(compression, &stream) == expected);
    }

    #[test]
    fn adlers_combine(a in proptest::collection::vec(any::<u8>(), 0..20_000), b in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        let adler = |text: &[u8]| { let mut adler = Adler::default(); adler.update(text); adler };
        prop_assert_eq!(adler(&a).then(adler(&b)), adler(&[a, b].concat()));
    }
}

#[test]
fn names_and_levels() {
    for (text, expected) in [
        ("zstd:3", Compression::Zstd { level: 3 }),
        ("gzip:6", Compression::Gzip { level: 6 }),
        ("none", Compression::None),
    ] {
        assert_eq!(text.parse::<Compression>().unwrap(), expected);
        assert_eq!(expected.to_string(), text);
    }
    assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::DEFAULT_ZSTD);
    for bad in ["", "zstd:0", "zstd:23", "gzip:10", "lz4", "none:1", "zstd:", "zstd:x"] {
        assert!(bad.parse::<Compression>().is_err(), "{bad}");
    }
    assert_eq!(Compression::default_for(15, ArchiveVersion::V1_16), Compression::DEFAULT_GZIP);
    assert_eq!(Compression::default_for(16, ArchiveVersion::V1_15), Compression::DEFAULT_ZSTD);
}

#[test]
fn padding_is_at_least_as_long_as_asked() {
    for min in [0, 1, 16, 17, 5 << 20] {
        let block = padding_block(min);
        assert!(block.len() as u64 >= min && block.len() as u64 <= min.max(17));
    }
}
