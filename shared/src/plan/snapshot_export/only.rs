//! Which tables of a snapshot are exported: RDS's `ExportOnly`.
//! Source: Amazon RDS API Reference, StartExportTask; Amazon RDS User Guide, "Considerations for DB snapshot exports".

/// The list's limit, in bytes.
const MAX_BYTES: usize = 200 << 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnlyError {
    #[error("{name:?} is not a database, database.schema or database.schema.table")]
    NotAName { name: String },
    #[error("{name:?} holds a character with which RDS exports no chosen tables (letters, digits, $ and _ can be)")]
    Character { name: String },
    #[error("{name:?} is listed twice")]
    Twice { name: String },
    #[error("the list of tables is {bytes} bytes long, and RDS takes {MAX_BYTES}")]
    TooLong { bytes: usize },
}

/// Checks a list as RDS will.
pub fn check(only: &[String]) -> Result<(), OnlyError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in only {
        let shown = || name.chars().take(120).collect::<String>();
        let parts: Vec<&str> = name.split('.').collect();
        if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
            return Err(OnlyError::NotAName { name: shown() });
        }
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '$' | '_')) {
            return Err(OnlyError::Character { name: shown() });
        }
        if !seen.insert(name) {
            return Err(OnlyError::Twice { name: shown() });
        }
    }
    // With what stands between them in whatever RDS counts.
    let bytes: usize = only.iter().map(|name| name.len() + 1).sum();
    if bytes > MAX_BYTES {
        return Err(OnlyError::TooLong { bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_databases_schemas_and_tables() {
        let list = |names: &[&str]| check(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        for good in [&["shop"][..], &["shop.public"], &["shop.public.orders", "shop.public.o$1_a"], &[]] {
            assert_eq!(list(good), Ok(()), "{good:?}");
        }
        for bad in [&[""][..], &["."], &["shop..orders"], &["a.b.c.d"], &["shop.public."]] {
            assert!(matches!(list(bad), Err(OnlyError::NotAName { .. })), "{bad:?}");
        }
        for bad in ["shop.public.a b", "shop.public.\"A\"", "shop.public.größe", "shop/public", "shop.public.a-b"] {
            assert!(matches!(list(&[bad]), Err(OnlyError::Character { .. })), "{bad}");
        }
        assert!(matches!(list(&["shop", "shop"]), Err(OnlyError::Twice { .. })));
    }

    #[test]
    fn a_list_longer_than_rds_takes_is_refused() {
        let names: Vec<String> = (0..10_000).map(|n| format!("shop.public.table_{n:08}")).collect();
        assert!(matches!(check(&names), Err(OnlyError::TooLong { .. })));
        assert_eq!(check(&names[..6_000]), Ok(()));
    }
}
