use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20))
}

prop_compose! {
    fn entry(relkinds: bool)(
        dump_id in 1i32..100_000, had_dumper in any::<bool>(), texts in proptest::collection::vec(text(), 12),
        section in 1i32..5, relkind in 0i32..128, dependencies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..4),
        offset in prop_oneof![Just(Offset::NotSet), any::<u64>().prop_map(Offset::Set), Just(Offset::NoData)],
    ) -> Entry {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().flatten();
        Entry {
            dump_id, had_dumper, catalog_oid: next(), oid: next(), tag: next(), desc: next(), section, defn: next(),
            drop_stmt: next(), copy_stmt: next(), namespace: next(), tablespace: next(), table_access_method: next(),
            relkind: if relkinds { relkind } else { 0 }, owner: next(), with_oids: next(), dependencies, offset,
        }
    }
}

fn toc() -> impl Strategy<Value = Toc> {
    (14u8..17).prop_flat_map(|minor| {
        let compression = match minor {
            14 => prop_oneof![Just(HeaderCompression::None), Just(HeaderCompression::Gzip)].boxed(),
            _ => {
                prop_oneof![Just(HeaderCompression::Zstd), Just(HeaderCompression::Gzip), Just(HeaderCompression::Lz4)]
                    .boxed()
            }
        };
        (compression, text(), proptest::collection::vec(entry(minor == 16), 0..5)).prop_map(
            move |(compression, database, entries)| Toc {
                header: Header {
                    version: ArchiveVersion { minor, revision: 0 },
                    compression,
                    created: [1, 2, 3, 4, 5, 125, 0],
                    database,
                    server_version: None,
                    pg_dump_version: Some(b"18.4".to_vec()),
                },
                entries,
            },
        )
    })
}

proptest! {
    #[test]
    fn reading_is_the_inverse_of_rendering(toc in toc()) {
        let bytes = toc.render();
        let (read, consumed) = Toc::read(bytes.as_slice()).unwrap();
        prop_assert_eq!(read, toc);
        prop_assert_eq!(consumed, bytes.len() as u64);
    }

    #[test]
    fn a_cut_archive_says_that_it_is_cut(toc in toc(), cut in 0.0f64..1.0) {
        let bytes = toc.render();
        let cut = (bytes.len() as f64 * cut) as usize;
        prop_assert!(Toc::read(&bytes[..cut]).unwrap_err().is_truncated());
    }

    #[test]
    fn a_damaged_archive_never_panics(toc in toc(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = toc.render();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = Toc::read(bytes.as_slice());
    }
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    assert!(matches!(Toc::read(&b"-- PostgreSQL"[..]), Err(TocError::NotAnArchive)));
    assert!(matches!(Toc::read(&b"PGDMP\x01\x0d\x00"[..]), Err(TocError::UnknownVersion { major: 1, minor: 13 })));
    assert!(matches!(Toc::read(&b"PGDMP\x01\x10\x00\x04\x08\x03"[..]), Err(TocError::NotCustomFormat { format: 3 })));
}
