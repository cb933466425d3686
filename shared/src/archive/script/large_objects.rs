//! Which large objects an archive, or one entry of it, is about.

use crate::archive::script::{ScriptError, dependencies, described};
use crate::archive::toc::{Entry, Toc};

/// The oids of a `BLOB METADATA` entry, one a line.
pub(super) fn object_ids(entry: &Entry) -> Result<Vec<u32>, ScriptError> {
    let lines = entry.defn.as_deref().unwrap_or_default().split(|&byte| byte == b'\n');
    lines
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
        .map(|line| std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| ScriptError::LargeObjects { entry: described(entry) })
}

/// Every large object that the archive lists.
///
/// # Errors
/// [`ScriptError::LargeObjects`] where a list is not one of oids.
pub fn large_objects(toc: &Toc) -> Result<Vec<u32>, ScriptError> {
    let mut oids = Vec::new();
    for entry in &toc.entries {
        match entry.desc() {
            b"BLOB METADATA" => oids.extend(object_ids(entry)?),
            b"BLOB" => oids.push(entry.oid().ok_or_else(|| ScriptError::LargeObjects { entry: described(entry) })?),
            _ => {}
        }
    }
    Ok(oids)
}

/// The large objects that an entry's first dependency lists.
pub(super) fn objects_of(toc: &Toc, entry: &Entry) -> Result<Vec<u32>, ScriptError> {
    let first = dependencies(entry).first().copied();
    let listed = toc.entries.iter().find(|other| Some(other.dump_id) == first && other.desc() == b"BLOB METADATA");
    object_ids(listed.ok_or_else(|| ScriptError::LargeObjects { entry: described(entry) })?)
}
