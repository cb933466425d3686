//! Archives that no `pg_dump` wrote: each is refused by name, runs nothing outside of its own database, and leaves
//! nothing behind.

use holdfast_shared::archive::toc::{Entry, Offset, Toc};

use crate::bed::{Bed, run};
use crate::engine::exists;
use crate::imports::import;
use crate::schema;

type Change = fn(&mut Toc);

fn of<'a>(toc: &'a mut Toc, desc: &str) -> &'a mut Entry {
    toc.entries.iter_mut().find(|entry| entry.desc() == desc.as_bytes()).unwrap_or_else(|| panic!("no {desc}"))
}

fn define(toc: &mut Toc, desc: &str, defn: &str) {
    of(toc, desc).defn = Some(defn.as_bytes().to_vec());
}

const CASES: &[(&str, &str, Change)] = &[
    ("archive-unexpected", "DROP as a definition", |toc| define(toc, "TABLE", "DROP DATABASE source WITH (FORCE);")),
    ("archive-unexpected", "DROP behind a definition", |toc| {
        define(toc, "TABLE", "CREATE TABLE app.x (a text DEFAULT ';'); DROP DATABASE source WITH (FORCE);");
    }),
    ("archive-unexpected", "DROP behind a literal that ends elsewhere by another setting", |toc| {
        define(toc, "TABLE", "CREATE TABLE app.x (a text DEFAULT '\\'); DROP DATABASE source; --');");
    }),
    ("archive-unexpected", "the server's settings", |toc| define(toc, "TABLE", "ALTER SYSTEM SET work_mem = '3MB';")),
    ("archive-unexpected", "a role", |toc| define(toc, "VIEW", "CREATE ROLE intruder SUPERUSER LOGIN;")),
    ("archive-unexpected", "another database", |toc| define(toc, "INDEX", "ALTER DATABASE source RENAME TO gone;")),
    ("archive-unexpected", "a program as a definition", |toc| define(toc, "TABLE", "COPY app.x TO PROGRAM 'id';")),
    ("archive-unexpected", "an anonymous block", |toc| define(toc, "TABLE", "DO $$ BEGIN PERFORM 1; END $$;")),
    ("archive-unexpected", "a command of psql", |toc| define(toc, "TABLE", "\\connect source\n")),
    ("archive-unexpected", "a privilege on a database", |toc| {
        define(toc, "ACL", "GRANT ALL ON DATABASE source TO reporting;\n");
    }),
    ("archive-unexpected", "a membership", |toc| define(toc, "ACL", "GRANT pg_execute_server_program TO reporting;\n")),
    ("archive-unexpected", "a comment on a database", |toc| {
        define(toc, "COMMENT", "COMMENT ON DATABASE source IS 'gone';");
    }),
    ("archive-unexpected", "a call with a query for an argument", |toc| {
        define(toc, "SEQUENCE SET", "SELECT pg_catalog.setval('app.ticket', (SELECT 1));");
    }),
    ("archive-unexpected", "COPY from a program", |toc| {
        of(toc, "TABLE DATA").copy_stmt = Some(b"COPY app.customers FROM PROGRAM 'id';\n".to_vec());
    }),
    ("archive-unexpected", "a query as data", |toc| {
        // Without a COPY statement the data count as INSERT statements.
        of(toc, "TABLE DATA").copy_stmt = None;
    }),
    ("archive-unexpected", "settings of the session", |toc| {
        define(toc, "ENCODING", "SET client_encoding = 'UTF8; DROP DATABASE source';\n");
    }),
    ("restore-object-failed", "more in the name of a function than its name", |toc| {
        of(toc, "FUNCTION").drop_stmt =
            Some(b"DROP FUNCTION app.double(integer) COST 1; DROP DATABASE source;\n".to_vec());
    }),
    ("restore-object-failed", "parentheses without end", |toc| {
        let nested = format!("CREATE VIEW app.totals AS SELECT {}1{};", "(".repeat(200_000), ")".repeat(200_000));
        define(toc, "VIEW", &nested);
    }),
    ("backup-damaged", "one dump id twice", |toc| {
        let id = of(toc, "TABLE").dump_id;
        of(toc, "INDEX").dump_id = id;
    }),
    ("backup-damaged", "indexes that depend on each other", |toc| {
        let index = of(toc, "INDEX");
        let id = index.dump_id.to_string().into_bytes();
        index.dependencies.push(id);
    }),
    ("backup-damaged", "an offset beyond the end", |toc| all_offsets(toc, u64::MAX)),
    ("backup-damaged", "an offset within the table of contents", |toc| all_offsets(toc, 20)),
    ("backup-damaged", "data of a table that is not listed", |toc| {
        let id = of(toc, "TABLE DATA").dump_id;
        toc.entries.retain(|entry| entry.dump_id != id);
    }),
    ("backup-damaged", "large objects that are not listed", |toc| {
        toc.entries.retain(|entry| entry.desc() != b"BLOB" && entry.desc() != b"BLOB METADATA");
    }),
    ("archive-without-definitions", "no table of contents to speak of", |toc| {
        toc.entries.retain(Entry::is_large_objects);
    }),
];

fn all_offsets(toc: &mut Toc, offset: u64) {
    let with_data = toc.entries.iter_mut().filter(|entry| entry.is_table_data() || entry.is_large_objects());
    with_data.enumerate().for_each(|(n, entry)| entry.offset = Offset::Set(offset.saturating_sub(n as u64)));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_pg_dump_did_not_write_are_refused_and_leave_nothing() {
    let bed = Bed::start(17).await;
    schema::create(&bed.cluster, "source", 50).await;
    let before = bed.contents("source").await;
    let client = holdfast_local::postgres::Installation::client(17).unwrap();
    let shell = format!(
        "{} -Fc --compress=none --dbname '{}' | cat > {}/piped.dump",
        client.tool("pg_dump").display(),
        bed.cluster.url("source"),
        bed.directory.path().display()
    );
    run(std::process::Command::new("bash").args(["-o", "pipefail", "-c", &shell]));
    let dump = std::fs::read(bed.directory.path().join("piped.dump")).unwrap();
    let (toc, data_at) = Toc::read(dump.as_slice()).unwrap();
    let data = &dump[data_at as usize..];

    let mut archives: Vec<(&str, &str, Vec<u8>)> = Vec::new();
    for (code, name, change) in CASES {
        let mut toc = toc.clone();
        change(&mut toc);
        archives.push((code, name, [toc.render().as_slice(), data].concat()));
    }
    archives.push(("backup-damaged", "every block twice", [&dump, data].concat()));
    archives.push(("backup-damaged", "something behind the last block", [&dump[..], &[7; 9]].concat()));
    archives.push(("backup-damaged", "its second half missing", dump[..dump.len() - data.len() / 2].to_vec()));
    // The number of entries stands before the first of them.
    let count_at = Toc { entries: Vec::new(), ..toc.clone() }.render().len() - 4;
    for count in [i32::MAX, 19_999_999, -1] {
        let mut damaged = dump.clone();
        damaged[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
        archives.push(("backup-damaged", "a count of entries that lies", damaged));
    }
    for (code, name, archive) in archives {
        let fault = import(&bed, archive).await.expect_err(name);
        assert_eq!(fault.code, code, "{name}: {fault}");
        assert!(!exists(&bed, "imported").await, "{name}");
    }
    assert_eq!(bed.contents("source").await, before);
    let intruders = "SELECT count(*) FROM pg_roles WHERE rolname = 'intruder'";
    let postgres = bed.cluster.connect("postgres").await.unwrap();
    assert_eq!(postgres.query_one(intruders, &[]).await.unwrap().get::<_, i64>(0), 0);

    // What would be run by `pg_restore --clean` is not looked at.
    let mut dropping = toc.clone();
    for entry in dropping.entries.iter_mut().filter(|entry| entry.desc() == b"TABLE") {
        entry.drop_stmt = Some(b"DROP DATABASE source WITH (FORCE);".to_vec());
    }
    import(&bed, [dropping.render().as_slice(), data].concat()).await.unwrap();
    assert_eq!(bed.contents("imported").await, before);
    assert_eq!(bed.contents("source").await, before);
}
