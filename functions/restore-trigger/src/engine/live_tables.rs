//! Live tables whose rows are exchanged in a transaction: locked, what hangs on them taken off, and put back as it was.

use std::collections::BTreeMap;

use holdfast_shared::archive::script::qualified;
use holdfast_shared::archive::sql::{self, identifier};
use holdfast_shared::archive::toc::Entry;
use holdfast_shared::domain::QualifiedName;
use holdfast_shared::fault::{Fault, chain};
use holdfast_shared::postgres::copy::{CopyError, RawSession};

use crate::engine::database::rows;
use crate::engine::source::Backup;

/// Tables by name, and as the array of their oids. Names are in the archive's encoding.
pub struct LiveTables {
    oids: String,
    /// Those that have rows: all but partitioned ones.
    with_rows: Vec<Vec<u8>>,
    notes: Vec<String>,
}

/// What does not exist, or does nothing, while the rows are exchanged; and how it comes back.
pub struct TakenOff {
    foreign_keys: Vec<ForeignKey>,
    others: Vec<Vec<u8>>,
}

struct ForeignKey {
    name: String,
    add: Vec<u8>,
    comment: Vec<u8>,
}

impl LiveTables {
    /// Locks the tables that the entries are of, and all partitions of those that are partitioned.
    pub async fn lock(
        session: &mut RawSession,
        backup: &Backup,
        entries: impl Iterator<Item = &Entry>,
    ) -> Result<Self, Fault> {
        let failed = |error: CopyError| place_fault("locking the tables", &error);
        let names: Vec<Vec<u8>> = entries.map(qualified).collect();
        let list = names.iter().map(|name| sql::literal(name)).collect::<Vec<_>>().join(b", ".as_slice());
        let query = [
            b"COPY (SELECT u.name, c.oid, c.relkind FROM pg_catalog.unnest(ARRAY[".as_slice(),
            &list,
            b"]) WITH ORDINALITY u(name, n) LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(u.name)
               ORDER BY u.n) TO STDOUT",
        ]
        .concat();
        let found = rows(session, query).await.map_err(failed)?;
        let unfit = |row: &&Vec<Vec<u8>>| !matches!(row[2].as_slice(), b"r" | b"p");
        let missing: Vec<String> = found.iter().filter(unfit).map(|row| text(&row[0])).collect();
        if !missing.is_empty() {
            return Err(Fault::new(
                "restore-table-missing",
                format!("there are no live tables {}", missing.join(", ")),
            )
            .hint("mode tables without \"into\" makes them in a schema of their own"));
        }
        let chosen: Vec<String> = found.iter().map(|row| text(&row[1])).collect();
        lock_each(session, &names).await?;
        let chosen_oids = array(&chosen);
        let query = format!(
            "COPY (SELECT c.oid, c.relkind, c.oid::pg_catalog.regclass, c.oid = ANY ({chosen_oids}), n.nspname, c.relname
                     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                    WHERE c.oid = ANY ({chosen_oids})
                       OR c.oid IN (SELECT p.relid FROM pg_catalog.unnest({chosen_oids}) o, pg_catalog.pg_partition_tree(o) p)
                    ORDER BY c.oid) TO STDOUT"
        );
        let all = rows(session, query).await.map_err(failed)?;
        if let Some(row) = all.iter().find(|row| !matches!(row[1].as_slice(), b"r" | b"p")) {
            let message = format!("{} is a partition that is no table", text(&row[2]));
            return Err(Fault::new("restore-table-missing", message).hint("choose the other partitions one by one"));
        }
        let more: Vec<&Vec<Vec<u8>>> = all.iter().filter(|row| row[3] == b"f").collect();
        let excluded = |row: &&&Vec<Vec<u8>>| {
            let name = QualifiedName::new(text(&row[4]), text(&row[5]));
            backup.excluded.iter().any(|pattern| pattern.matches(&name))
        };
        if let Some(row) = more.iter().find(excluded) {
            let message = format!("the backup has no rows of {}, a partition of a chosen table", text(&row[2]));
            return Err(Fault::new("restore-table-without-rows", message)
                .hint("it was left out of the backup, and would be emptied: choose the other partitions one by one"));
        }
        lock_each(session, &more.iter().map(|row| row[2].clone()).collect::<Vec<_>>()).await?;
        let emptied = more.iter().filter(|row| row[1] == b"r");
        Ok(Self {
            oids: array(&all.iter().map(|row| text(&row[0])).collect::<Vec<_>>()),
            with_rows: all.iter().filter(|row| row[1] == b"r").map(|row| row[2].clone()).collect(),
            notes: emptied
                .map(|row| format!("{} was emptied: the backup does not have this partition", text(&row[2])))
                .collect(),
        })
    }

    /// Every column of the backup is there and takes values, and no other has to be given one.
    pub async fn check_columns(&self, session: &mut RawSession, backup: &Backup) -> Result<(), Fault> {
        let mut problems = Vec::new();
        for block in 0..backup.blocks.len() {
            let (relation, columns) = backup.relation(block)?;
            let query = [
                b"COPY (SELECT attname, attgenerated, attnotnull AND NOT atthasdef AND attidentity = ''
                          FROM pg_catalog.pg_attribute WHERE attrelid = "
                    .as_slice(),
                &sql::literal(&relation),
                b"::pg_catalog.regclass AND attnum > 0 AND NOT attisdropped) TO STDOUT",
            ]
            .concat();
            let live = rows(session, query).await.map_err(|error| place_fault(&backup.name(block), &error))?;
            let live: BTreeMap<&[u8], (&[u8], &[u8])> =
                live.iter().map(|row| (row[0].as_slice(), (row[1].as_slice(), row[2].as_slice()))).collect();
            let stored: Vec<Vec<u8>> = sql::words(columns).into_iter().step_by(2).map(sql::unquoted).collect();
            let (table, name) = (text(&relation), |column: &[u8]| text(&identifier(column)));
            for column in &stored {
                match live.get(column.as_slice()) {
                    None => problems.push(format!("{table} has no column {}", name(column))),
                    Some((generated, _)) if !generated.is_empty() => {
                        problems.push(format!("{} of {table} is generated", name(column)));
                    }
                    Some(_) => {}
                }
            }
            let demanding = live.iter().filter(|(column, (generated, demanding))| {
                *demanding == b"t" && generated.is_empty() && !stored.iter().any(|stored| stored == *column)
            });
            problems
                .extend(demanding.map(|(column, _)| {
                    format!("{} of {table} is not in the backup, and has no default", name(column))
                }));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Fault::new("restore-columns-differ", problems.join("; "))
            .hint("restore into a schema of its own, and copy from there what fits"))
    }

    /// Drops foreign keys of and to the tables, which would forbid to empty them; stills triggers and row security.
    pub async fn take_off(&self, session: &mut RawSession) -> Result<TakenOff, Fault> {
        let failed = |error: CopyError| place_fault("foreign keys and triggers", &error);
        let oids = &self.oids;
        // A key of partitions is its parent's.
        let keys = format!(
            "COPY (WITH RECURSIVE touched AS (
                     SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k
                      WHERE k.contype = 'f' AND (k.conrelid = ANY ({oids}) OR k.confrelid = ANY ({oids}))
                     UNION SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k JOIN touched t ON t.conparentid = k.oid)
                   SELECT pg_catalog.format('%I of %s', k.conname, k.conrelid::pg_catalog.regclass),
                          pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::pg_catalog.regclass, k.conname),
                          pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::pg_catalog.regclass, k.conname,
                                            pg_catalog.pg_get_constraintdef(k.oid)),
                          pg_catalog.format('COMMENT ON CONSTRAINT %I ON %s IS %L', k.conname, k.conrelid::pg_catalog.regclass,
                                            pg_catalog.obj_description(k.oid, 'pg_constraint'))
                     FROM pg_catalog.pg_constraint k WHERE k.conparentid = 0 AND k.oid IN (SELECT oid FROM touched)
                    ORDER BY k.oid) TO STDOUT"
        );
        let mut taken = TakenOff { foreign_keys: Vec::new(), others: Vec::new() };
        for row in rows(session, keys).await.map_err(failed)? {
            let [name, drop, add, comment] = row.try_into().unwrap_or_default();
            let name = text(&name);
            session.execute(drop).await.map_err(|error| place_fault(&format!("foreign key {name}"), &error))?;
            taken.foreign_keys.push(ForeignKey { name, add, comment });
        }
        // Triggers of partitions that are copies of their parent's count as internal up to PostgreSQL 14.
        let others = format!(
            "COPY (SELECT pg_catalog.format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', tgrelid::pg_catalog.regclass, tgname),
                          pg_catalog.format('ALTER TABLE ONLY %s ENABLE %sTRIGGER %I', tgrelid::pg_catalog.regclass,
                                            CASE tgenabled WHEN 'A' THEN 'ALWAYS ' WHEN 'R' THEN 'REPLICA ' ELSE '' END, tgname)
                     FROM pg_catalog.pg_trigger
                    WHERE tgrelid = ANY ({oids}) AND tgenabled <> 'D' AND (NOT tgisinternal OR tgparentid <> 0)
                   UNION ALL
                   SELECT pg_catalog.format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', oid::pg_catalog.regclass),
                          pg_catalog.format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', oid::pg_catalog.regclass)
                     FROM pg_catalog.pg_class WHERE oid = ANY ({oids}) AND relforcerowsecurity) TO STDOUT"
        );
        for row in rows(session, others).await.map_err(failed)? {
            let [off, on] = row.try_into().unwrap_or_default();
            session.execute(&off).await.map_err(|error| place_fault(&text(&off), &error))?;
            taken.others.push(on);
        }
        Ok(taken)
    }

    pub async fn empty(&self, session: &mut RawSession) -> Result<(), Fault> {
        if self.with_rows.is_empty() {
            return Ok(());
        }
        let list = self.with_rows.iter().map(|name| [b"ONLY ".as_slice(), name].concat()).collect::<Vec<_>>();
        let statement = [b"TRUNCATE ".as_slice(), &list.join(b", ".as_slice())].concat();
        session.execute(statement).await.map_err(|error| place_fault("emptying the tables", &error))
    }

    /// Sequences that belong to columns of the tables go on where they were; with the transaction, or not at all.
    pub async fn set_sequences(&self, session: &mut RawSession, entries: &[Entry]) -> Result<Vec<String>, Fault> {
        let failed = |error: CopyError| place_fault("sequences", &error);
        let query = format!(
            "COPY (SELECT s.oid::pg_catalog.regclass, n.nspname, s.relname
                     FROM pg_catalog.pg_depend d
                     JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                     JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
                    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = d.classid
                      AND d.deptype IN ('a', 'i') AND d.refobjid = ANY ({})
                    ORDER BY s.oid) TO STDOUT",
            self.oids
        );
        let mut notes = Vec::new();
        for row in rows(session, query).await.map_err(failed)? {
            let [sequence, schema, name] = row.try_into().unwrap_or_default();
            let stored = entries.iter().find(|entry| {
                entry.desc() == b"SEQUENCE SET"
                    && entry.namespace.as_deref() == Some(&schema)
                    && entry.tag.as_deref() == Some(&name)
            });
            let label = text(&sequence);
            let Some(state) = stored.and_then(sequence_state) else {
                notes.push(format!("sequence {label} goes on as it was: the backup does not have it"));
                continue;
            };
            let query = [b"COPY (SELECT last_value, is_called FROM ".as_slice(), &sequence, b") TO STDOUT"].concat();
            let before = rows(session, query).await.map_err(failed)?.pop().unwrap_or_default();
            // A restarted sequence is a new one to the transaction, so that setval is undone with it.
            let statement = [
                b"ALTER SEQUENCE ".as_slice(),
                &sequence,
                b" RESTART; SELECT pg_catalog.setval(",
                &sql::literal(&sequence),
                format!("::pg_catalog.regclass, {}, {})", state.0, state.1).as_bytes(),
            ]
            .concat();
            session.execute(statement).await.map_err(|error| place_fault(&format!("sequence {label}"), &error))?;
            let last = before.first().map(|value| text(value)).unwrap_or_default();
            if last != state.0.to_string() {
                notes.push(format!("sequence {label} stood at {last}, and stands at {} as in the backup", state.0));
            }
        }
        Ok(notes)
    }

    /// Foreign keys are checked as they come back: all of them, so that every one that does not hold is told.
    pub async fn put_back(&self, session: &mut RawSession, taken: TakenOff) -> Result<Vec<String>, Fault> {
        let (mut notes, mut dangling) = (Vec::new(), Vec::new());
        session.execute("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(|error| place_fault("constraints", &error))?;
        for ForeignKey { name, add, comment } in taken.foreign_keys {
            let failed = |error: CopyError| place_fault(&format!("foreign key {name}"), &error);
            session.execute("SAVEPOINT foreign_key").await.map_err(failed)?;
            match session.execute(&add).await {
                Ok(()) => session.execute(comment).await.map_err(failed)?,
                Err(error) if error.code() == Some("23503") => {
                    session.execute("ROLLBACK TO foreign_key").await.map_err(failed)?;
                    dangling.push(format!("{name}: {}", chain(&error)));
                }
                Err(error) => return Err(failed(error)),
            }
            if add.ends_with(b" NOT VALID") || add.ends_with(b" NOT ENFORCED") {
                notes.push(format!("foreign key {name} was not checked: it is not valid, or not enforced"));
            }
        }
        if !dangling.is_empty() {
            return Err(Fault::new("restore-rows-would-dangle", dangling.join("; "))
                .hint("restore the tables at both ends of the key, or into a schema of their own"));
        }
        for statement in taken.others {
            session.execute(&statement).await.map_err(|error| place_fault(&text(&statement), &error))?;
        }
        Ok(notes)
    }

    /// What is other than before, or not up to date.
    pub async fn notes(self, session: &mut RawSession) -> Result<Vec<String>, Fault> {
        let query = format!(
            "COPY (SELECT DISTINCT c.oid::pg_catalog.regclass FROM pg_catalog.pg_depend d
                     JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
                     JOIN pg_catalog.pg_class c ON c.oid = r.ev_class AND c.relkind = 'm'
                    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.refobjid = ANY ({})) TO STDOUT",
            self.oids
        );
        let views = rows(session, query).await.map_err(|error| place_fault("materialized views", &error))?;
        let views = views.iter().map(|row| format!("materialized view {} was not refreshed", text(&row[0])));
        let mut notes = self.notes;
        notes.extend(views);
        Ok(notes)
    }
}

async fn lock_each(session: &mut RawSession, names: &[Vec<u8>]) -> Result<(), Fault> {
    if names.is_empty() {
        return Ok(());
    }
    let list = names.iter().map(|name| [b"ONLY ".as_slice(), name].concat()).collect::<Vec<_>>();
    let statement = [b"LOCK TABLE ".as_slice(), &list.join(b", ".as_slice()), b" IN ACCESS EXCLUSIVE MODE"].concat();
    session.execute(statement).await.map_err(|error| place_fault("locking the tables", &error))
}

/// Value and `is_called` of `SELECT pg_catalog.setval('…', 17, true);`.
fn sequence_state(entry: &Entry) -> Option<(i64, bool)> {
    let words = sql::words(entry.defn.as_deref()?);
    let at = words.iter().position(|word| *word == b",")?;
    let last = words.iter().rposition(|word| *word == b",").filter(|&last| last > at)?;
    let value = words[at + 1..last].concat();
    let called = match *words.get(last + 1)? {
        b"true" => true,
        b"false" => false,
        _ => return None,
    };
    Some((std::str::from_utf8(&value).ok()?.parse().ok()?, called))
}

fn array(oids: &[String]) -> String {
    format!("'{{{}}}'::pg_catalog.oid[]", oids.join(","))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a failed statement of the exchange means to the operator. Everything is then as it was.
pub fn place_fault(what: &str, error: &CopyError) -> Fault {
    let (code, hint) = match (error, error.code()) {
        (_, Some("55P03" | "40P01")) => ("table-locked", "end the sessions that hold the tables, and ask again"),
        (_, Some("42501")) => ("restore-not-permitted", "the role has to own the tables, and those with keys to them"),
        (_, Some("53100")) => ("target-disk-full", "give the target server more storage"),
        (_, Some("57P01" | "57P02" | "57P03")) | (CopyError::Io(_), _) => {
            ("database-connection-lost", "the rows are as they were; ask again")
        }
        _ => ("restore-object-failed", "the rows are as they were"),
    };
    Fault::from_error(code, error).with_context(what).hint(hint)
}
