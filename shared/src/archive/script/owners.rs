//! Whose an object is, and who may do what with it.

use super::large_objects::object_ids;
use super::{OBJECT_BATCH, Script, ScriptError, Step, Surroundings, described, qualified, unexpected};
use crate::archive::toc::Entry;
use crate::archive::{admit, sql};

/// Types that are named by schema and tag in `ALTER … OWNER TO`.
const PLAINLY_NAMED: [&[u8]; 20] = [
    b"COLLATION",
    b"CONVERSION",
    b"DOMAIN",
    b"FOREIGN TABLE",
    b"MATERIALIZED VIEW",
    b"SEQUENCE",
    b"STATISTICS",
    b"TABLE",
    b"TEXT SEARCH DICTIONARY",
    b"TEXT SEARCH CONFIGURATION",
    b"TYPE",
    b"VIEW",
    b"DATABASE",
    b"PROCEDURAL LANGUAGE",
    b"SCHEMA",
    b"EVENT TRIGGER",
    b"FOREIGN DATA WRAPPER",
    b"SERVER",
    b"PUBLICATION",
    b"SUBSCRIPTION",
];
/// Types that are named as their `DROP` names them.
const NAMED_BY_DROP: [&[u8]; 6] =
    [b"AGGREGATE", b"FUNCTION", b"OPERATOR", b"OPERATOR CLASS", b"OPERATOR FAMILY", b"PROCEDURE"];

impl Script {
    /// `ALTER … OWNER TO`, where the role is there and may be given what is restored.
    pub(super) fn add_owner(&mut self, entry: &Entry, around: &Surroundings) -> Result<(), ScriptError> {
        let (Some(owner), Some(drop_stmt)) = (entry.owner.as_deref(), entry.drop_stmt.as_deref()) else {
            return Ok(());
        };
        if around.no_owner || owner.is_empty() || drop_stmt.is_empty() {
            return Ok(());
        }
        let desc = entry.desc();
        let objects: Vec<Vec<u8>> = if desc == b"BLOB METADATA" {
            object_ids(entry)?.iter().map(|oid| format!("LARGE OBJECT {oid}").into_bytes()).collect()
        } else if desc == b"BLOB" {
            let oid = entry.oid().ok_or_else(|| ScriptError::LargeObjects { entry: described(entry) })?;
            vec![format!("LARGE OBJECT {oid}").into_bytes()]
        } else if PLAINLY_NAMED.contains(&desc) {
            vec![[desc, b" ", &qualified(entry)].concat()]
        } else if NAMED_BY_DROP.contains(&desc) {
            let named = drop_stmt.strip_prefix(b"DROP ").filter(|named| named.starts_with(desc));
            let named = named.ok_or_else(|| unexpected(entry, drop_stmt))?.trim_ascii_end();
            let named = named.strip_suffix(b";").unwrap_or(named);
            vec![named.to_vec()]
        } else {
            Vec::new()
        };
        if objects.is_empty() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(owner);
        if !around.roles.contains(owner) {
            self.left_out.push(format!("{} is not {name}'s: there is no such role", described(entry)));
            return Ok(());
        }
        if !around.superuser && !around.inherited.contains(owner) {
            let why = "the restoring role does not inherit from it";
            self.left_out.push(format!("{} cannot be given to {name}: {why}", described(entry)));
            return Ok(());
        }
        for batch in objects.chunks(OBJECT_BATCH) {
            let statements: Vec<Vec<u8>> = batch
                .iter()
                .map(|object| [b"ALTER ", object.as_slice(), b" OWNER TO ", &sql::identifier(owner)].concat())
                .collect();
            let if_refused = (!around.superuser).then(|| format!("{} cannot be given to {name}", described(entry)));
            self.steps.push(Step { statements, if_refused, defines: false, postponable: true });
        }
        Ok(())
    }

    /// `GRANT` and `REVOKE`, for each of `objects` where the entry stands for several large objects.
    pub(super) fn add_privileges(
        &mut self,
        entry: &Entry,
        statements: &[&[u8]],
        objects: &[u32],
        around: &Surroundings,
    ) -> Result<(), ScriptError> {
        let mut acting_as: Option<Vec<u8>> = None;
        let mut unknown_actor = false;
        for &statement in statements {
            let words = sql::words(statement);
            if words.starts_with(&[b"SET", b"SESSION", b"AUTHORIZATION"]) {
                let actor = words.get(3).map(|word| sql::unquoted(word)).unwrap_or_default();
                unknown_actor = !around.roles.contains(&actor);
                acting_as = Some(actor);
                continue;
            }
            if words.starts_with(&[b"RESET", b"SESSION", b"AUTHORIZATION"]) {
                (acting_as, unknown_actor) = (None, false);
                continue;
            }
            if !admit::is_expected_privilege(&words) {
                return Err(unexpected(entry, statement));
            }
            let missing = sql::privilege_roles(&words).into_iter().find(|role| !around.roles.contains(role));
            if missing.is_some() || unknown_actor {
                let role = missing.or_else(|| acting_as.clone()).unwrap_or_default();
                self.left_out.push(format!(
                    "a privilege of {}: there is no role {}",
                    described(entry),
                    String::from_utf8_lossy(&role)
                ));
                continue;
            }
            let each: Vec<Vec<u8>> = if objects.is_empty() {
                vec![statement.to_vec()]
            } else {
                objects
                    .iter()
                    .map(|oid| sql::with_large_object(statement, *oid).ok_or_else(|| unexpected(entry, statement)))
                    .collect::<Result<_, _>>()?
            };
            for batch in each.chunks(OBJECT_BATCH) {
                let mut statements = batch.to_vec();
                if let Some(actor) = &acting_as {
                    statements.insert(0, [b"SET SESSION AUTHORIZATION ", sql::identifier(actor).as_slice()].concat());
                    statements.push(b"RESET SESSION AUTHORIZATION".to_vec());
                }
                let if_refused = (!around.superuser).then(|| format!("a privilege of {}", described(entry)));
                self.steps.push(Step { statements, if_refused, defines: false, postponable: false });
            }
        }
        Ok(())
    }
}
