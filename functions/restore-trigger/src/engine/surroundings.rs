//! What a restore finds on the target server: roles, tablespaces, and what the restoring role may.

use holdfast_shared::archive::script::Surroundings;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::copy::RawSession;
use holdfast_shared::postgres::session::copy_fault;

use crate::engine::Options;
use crate::engine::database::first_column;

/// Owners are subject to policies where row security is forced, and could then neither refresh nor prove: it is lifted
/// until that is done. The tables it was lifted from.
pub async fn lift_row_security(session: &mut RawSession) -> Result<Vec<Vec<u8>>, Fault> {
    let sql = "COPY (SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c, pg_catalog.pg_roles r
                      WHERE c.relrowsecurity AND c.relforcerowsecurity AND r.rolname = current_user
                        AND NOT r.rolsuper AND NOT r.rolbypassrls AND pg_catalog.pg_has_role(c.relowner, 'USAGE')) TO STDOUT";
    let forced = first_column(session, sql).await?;
    for table in &forced {
        let sql = [b"ALTER TABLE ".as_slice(), table, b" NO FORCE ROW LEVEL SECURITY"].concat();
        session.execute(sql).await.map_err(|error| copy_fault(&error, "row security"))?;
    }
    Ok(forced)
}

/// Roles and tablespaces in the archive's encoding.
pub async fn surroundings(session: &mut RawSession, options: Options) -> Result<Surroundings, Fault> {
    let mut names = async |sql: &str| first_column(session, sql).await;
    let roles = names("COPY (SELECT rolname FROM pg_catalog.pg_roles) TO STDOUT").await?;
    let tablespaces = names("COPY (SELECT spcname FROM pg_catalog.pg_tablespace) TO STDOUT").await?;
    let inherited =
        "COPY (SELECT rolname FROM pg_catalog.pg_roles WHERE pg_catalog.pg_has_role(oid, 'USAGE')) TO STDOUT";
    let inherited = names(inherited).await?;
    let superuser = names("COPY (SELECT pg_catalog.current_setting('is_superuser')) TO STDOUT").await?;
    let major = names("COPY (SELECT pg_catalog.current_setting('server_version_num')::int / 10000) TO STDOUT").await?;
    let major = major.first().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    Ok(Surroundings {
        major: major.ok_or_else(|| Fault::new("database-query-failed", "the server does not tell its version"))?,
        roles: roles.into_iter().collect(),
        tablespaces: tablespaces.into_iter().collect(),
        superuser: superuser.first().is_some_and(|text| text == b"on"),
        inherited: inherited.into_iter().collect(),
        no_owner: options.no_owner,
        no_privileges: false,
    })
}
