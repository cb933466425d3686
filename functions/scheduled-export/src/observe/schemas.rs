//! The schemas of chosen tables, which `pg_dump` leaves out.

use std::collections::BTreeMap;

use holdfast_shared::archive::sql::identifier;
use holdfast_shared::archive::toc::{Entry, Offset, Toc};

/// With chosen tables `pg_dump` leaves out the schemas they lie in, and the archive could not be restored into an
/// empty database: they are added.
pub fn add_schema_entries(toc: &mut Toc, owners: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut names: Vec<Vec<u8>> = toc.entries.iter().filter_map(|entry| entry.namespace.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let at = toc.entries.iter().position(|entry| !entry.tag.as_deref().is_some_and(is_preamble)).unwrap_or(0);
    for schema in names.into_iter().rev() {
        let present = toc.entries.iter().any(|e| e.desc() == b"SCHEMA" && e.tag.as_ref() == Some(&schema));
        let Some(owner) = owners.get(&schema).filter(|_| !present && schema != b"public" && !schema.is_empty()) else {
            continue;
        };
        // Always quoted, where `pg_dump` quotes what needs it.
        let quoted = identifier(&schema);
        let entry = Entry {
            dump_id: toc.unused_dump_id(),
            had_dumper: false,
            catalog_oid: Some(b"2615".to_vec()),
            oid: Some(b"0".to_vec()),
            tag: Some(schema),
            desc: Some(b"SCHEMA".to_vec()),
            section: 2,
            defn: Some([b"CREATE SCHEMA ", quoted.as_slice(), b";\n\n\n"].concat()),
            drop_stmt: Some([b"DROP SCHEMA ", quoted.as_slice(), b";\n"].concat()),
            // Null, not empty: a reader would set an empty name.
            copy_stmt: None,
            namespace: None,
            tablespace: None,
            table_access_method: None,
            relkind: 0,
            owner: Some(owner.clone()),
            with_oids: Some(b"false".to_vec()),
            dependencies: Vec::new(),
            offset: Offset::NoData,
        };
        toc.entries.insert(at, entry);
    }
}

/// The settings an archive begins with.
fn is_preamble(tag: &[u8]) -> bool {
    matches!(tag, b"ENCODING" | b"STDSTRINGS" | b"SEARCHPATH")
}
