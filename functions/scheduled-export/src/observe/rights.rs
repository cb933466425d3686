//! Whether what is asked for is there, and may be read: told before any data is.

use holdfast_shared::domain::manifest::Selection;
use holdfast_shared::domain::table::quote_identifier;
use holdfast_shared::domain::{QualifiedName, TablePattern};
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::catalog::{self, ServerFacts};
use holdfast_shared::postgres::session::{Client, query_fault};

/// How much of what is wrong an error lists.
const LISTED: usize = 20;

/// A chosen table that does not exist is a mistake; one left out that does not exist is worth a word.
pub async fn check_selection(client: &Client, selection: &Selection, warnings: &mut Vec<String>) -> Result<(), Fault> {
    if *selection == Selection::default() {
        return Ok(());
    }
    let tables = catalog::user_tables(client).await.map_err(query_fault)?;
    let unmatched = |patterns: &[TablePattern]| -> Vec<String> {
        patterns.iter().filter(|p| !tables.iter().any(|table| p.matches(table))).map(ToString::to_string).collect()
    };
    let missing = unmatched(&selection.include);
    if !missing.is_empty() {
        return Err(Fault::new("tables-not-found", format!("no table matches {}", missing.join(", ")))
            .hint("names are matched as they are stored, upper and lower case apart"));
    }
    let any = |patterns: &[TablePattern], table: &QualifiedName| patterns.iter().any(|p| p.matches(table));
    let kept = |table: &QualifiedName| any(&selection.include, table) && !any(&selection.exclude, table);
    if !selection.include.is_empty() && !tables.iter().any(kept) {
        return Err(Fault::new("tables-not-found", "all tables that were chosen are excluded, too")
            .hint("look at exclude_tables in the request and at EXCLUDE_TABLES"));
    }
    for pattern in unmatched(&selection.exclude).into_iter().chain(unmatched(&selection.exclude_data)) {
        warnings.push(format!("no table matches the excluded {pattern}"));
    }
    Ok(())
}

/// Everything that cannot be read is told at once.
pub async fn check_rights(client: &Client, facts: &ServerFacts, selection: &Selection) -> Result<(), Fault> {
    let chosen = |name: &QualifiedName| {
        (selection.include.is_empty() || selection.include.iter().any(|pattern| pattern.matches(name)))
            && !selection.exclude.iter().any(|pattern| pattern.matches(name))
    };
    let mut unreadable = catalog::unreadable_relations(client, facts).await.map_err(query_fault)?;
    unreadable.retain(|relation| chosen(&relation.name));
    if !unreadable.is_empty() {
        let mut remedies: Vec<&str> = unreadable.iter().map(|relation| relation.remedy.as_str()).collect();
        remedies.dedup();
        let listed: Vec<String> = unreadable
            .iter()
            .take(LISTED)
            .map(|relation| format!("{} ({})", relation.name, relation.problem))
            .collect();
        let more = unreadable.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let all =
            if facts.major() >= 14 { "; or GRANT pg_read_all_data, and BYPASSRLS where rows are hidden" } else { "" };
        return Err(Fault::new(
            "table-not-readable",
            format!("{} may not read {}{more}", facts.role, listed.join(", ")),
        )
        .hint(format!("{}{all}", remedies.into_iter().take(LISTED).collect::<Vec<_>>().join("; "))));
    }
    if selection.include.is_empty() {
        let objects = catalog::unreadable_large_objects(client, LISTED as i64).await.map_err(query_fault)?;
        if let Some(first) = objects.first() {
            let role = quote_identifier(&facts.role);
            return Err(Fault::new(
                "large-object-not-readable",
                format!("{} may not read large objects {objects:?}", facts.role),
            )
            .hint(format!("GRANT SELECT ON LARGE OBJECT {first} TO {role}, or make {role} a member of their owner")));
        }
    }
    Ok(())
}
