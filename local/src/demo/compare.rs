//! Two databases side by side: what each table, sequence and the large objects hold, counted and fingerprinted by SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use tokio_postgres::{Client, Error};

/// Ordinary tables (partitions one by one), materialized views and sequences, each with the query that sums it up.
/// The fingerprint is the sum of the first 60 bits of each row's MD5: it does not depend on the order of rows.
const QUERIES: &str = r"
    select format('%I.%I', n.nspname, c.relname),
           format('select count(*), coalesce(sum((''x'' || left(md5(t::text), 15))::bit(60)::bigint), 0)::text from %s %I.%I t',
                  case when c.relkind = 'r' then 'only' else '' end, n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm') and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_(toast|temp)'
    union all
    select format('sequence %I.%I', n.nspname, c.relname),
           format('select last_value, md5(last_value || is_called::text) from %I.%I', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'S' and n.nspname not in ('pg_catalog', 'information_schema')
    union all
    select 'large objects',
           'select count(distinct loid), coalesce(sum((''x'' || left(md5(l::text), 15))::bit(60)::bigint), 0)::text from pg_largeobject l'
    order by 1";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Summary {
    rows: i64,
    fingerprint: String,
}

pub struct Comparison {
    source: BTreeMap<String, Summary>,
    restored: BTreeMap<String, Summary>,
}

pub async fn compare(source: &Client, restored: &Client) -> Result<Comparison, Error> {
    Ok(Comparison { source: summarise(source).await?, restored: summarise(restored).await? })
}

async fn summarise(client: &Client) -> Result<BTreeMap<String, Summary>, Error> {
    let mut found = BTreeMap::new();
    for relation in client.query(QUERIES, &[]).await? {
        let row = client.query_one(relation.get::<_, &str>(1), &[]).await?;
        found.insert(relation.get(0), Summary { rows: row.get(0), fingerprint: row.get(1) });
    }
    Ok(found)
}

impl Comparison {
    fn names(&self) -> BTreeSet<&String> {
        self.source.keys().chain(self.restored.keys()).collect()
    }

    pub fn differences(&self) -> usize {
        self.names().into_iter().filter(|name| self.source.get(*name) != self.restored.get(*name)).count()
    }

    /// A table for the terminal.
    pub fn render(&self, source: &str, restored: &str) -> String {
        let names = self.names();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let mut text = format!("{:width$}  {source:>28}  {restored:>28}\n", "");
        let columns = format!("{:>12}  {:>14}", "rows", "fingerprint");
        let _ = writeln!(text, "{:width$}  {columns}  {columns}", "");
        for name in names {
            let (left, right) = (self.source.get(name), self.restored.get(name));
            let verdict = if left == right { "equal" } else { "DIFFERS" };
            let _ = writeln!(text, "{name:width$}  {}  {}  {verdict}", cell(left), cell(right));
        }
        text
    }
}

/// Rows (of a sequence: its value) and the fingerprint's last digits.
fn cell(summary: Option<&Summary>) -> String {
    let Some(Summary { rows, fingerprint }) = summary else { return format!("{:>28}", "missing") };
    let short = &fingerprint[fingerprint.len().saturating_sub(12)..];
    format!("{rows:>12}  {short:>14}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_table_and_another_fingerprint_are_differences() {
        let summary = |fingerprint: &str| Summary { rows: 1, fingerprint: fingerprint.into() };
        let map = |entries: &[(&str, &str)]| {
            entries.iter().map(|(name, fingerprint)| ((*name).to_owned(), summary(fingerprint))).collect()
        };
        let comparison = Comparison {
            source: map(&[("same", "1"), ("other", "2"), ("lost", "3")]),
            restored: map(&[("same", "1"), ("other", "4")]),
        };
        assert_eq!(comparison.differences(), 2);
        let text = comparison.render("a", "b");
        assert_eq!(text.matches("DIFFERS").count(), 2);
        assert!(text.contains("missing"));
    }
}
