use super::*;
use crate::archive::toc::{ArchiveVersion, Header, HeaderCompression};

fn entry(dump_id: i32, desc: &str, tag: &str, defn: &str) -> Entry {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    Entry {
        dump_id,
        had_dumper: desc == "TABLE DATA",
        catalog_oid: None,
        oid: None,
        tag: text(tag),
        desc: text(desc),
        section: 2,
        defn: text(defn),
        drop_stmt: text("DROP …"),
        copy_stmt: (desc == "TABLE DATA").then(|| defn.as_bytes().to_vec()),
        namespace: text("app"),
        tablespace: None,
        table_access_method: None,
        relkind: 0,
        owner: text("postgres"),
        with_oids: None,
        dependencies: Vec::new(),
        offset: if desc == "TABLE DATA" { Offset::Set(100) } else { Offset::NoData },
    }
}

fn toc(entries: &[(&str, &str, &str)]) -> Toc {
    let header = Header {
        version: ArchiveVersion::V1_16,
        compression: HeaderCompression::None,
        created: [0; 7],
        database: None,
        server_version: None,
        pg_dump_version: None,
    };
    let entries = entries.iter().zip(1..).map(|((desc, tag, defn), id)| entry(id, desc, tag, defn)).collect();
    Toc { header, entries }
}

fn moved(entries: &[(&str, &str, &str)], patterns: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut toc = toc(entries);
    let patterns: Vec<TablePattern> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
    let chosen = choose(&toc, &patterns).unwrap();
    let moved = move_to(&mut toc, &chosen, "r").unwrap();
    let text = |index: &usize| {
        let entry = &toc.entries[*index];
        let text = entry.copy_stmt.as_deref().or(entry.defn.as_deref()).unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    };
    (moved.entries.iter().map(text).collect(), moved.left_out)
}

#[test]
fn only_the_names_of_what_moves_change() {
    let table = "CREATE TABLE app.t (\n    id integer NOT NULL,\n    m app.t2 DEFAULT 'app.t'::app.t2,\n    n text DEFAULT (nextval('app.shared'::regclass))::text NOT NULL,\n    CONSTRAINT c CHECK ((app.t(id) > 0))\n);\nALTER TABLE ONLY app.t ALTER COLUMN m SET STATISTICS 5;\n";
    let (statements, left_out) = moved(
        &[
            ("TABLE", "t", table),
            ("SEQUENCE", "t_id_seq", "CREATE SEQUENCE app.t_id_seq\n    START WITH 1;\n"),
            ("SEQUENCE OWNED BY", "t_id_seq", "ALTER SEQUENCE app.t_id_seq OWNED BY app.t.id;\n"),
            ("SEQUENCE", "shared", "CREATE SEQUENCE app.shared;\n"),
            (
                "DEFAULT",
                "t id",
                "ALTER TABLE ONLY app.t ALTER COLUMN id SET DEFAULT nextval('app.t_id_seq'::regclass);\n",
            ),
            ("TABLE DATA", "t", "COPY app.t (id, \"app.t\") FROM stdin;\n"),
            ("SEQUENCE SET", "t_id_seq", "SELECT pg_catalog.setval('app.t_id_seq', 7, true);\n"),
            ("SEQUENCE SET", "shared", "SELECT pg_catalog.setval('app.shared', 7, true);\n"),
            ("INDEX", "i", "CREATE UNIQUE INDEX i ON app.t USING btree (app.t(id));\n"),
            (
                "FK CONSTRAINT",
                "t f",
                "ALTER TABLE ONLY app.t\n    ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES app.other(id);\n",
            ),
            (
                "FK CONSTRAINT",
                "t g",
                "ALTER TABLE ONLY app.t\n    ADD CONSTRAINT g FOREIGN KEY (id) REFERENCES app.t(id);\n",
            ),
            ("COMMENT", "COLUMN t.id", "COMMENT ON COLUMN app.t.id IS 'app.t; app.t';\n"),
            ("COMMENT", "TABLE other", "COMMENT ON TABLE app.other IS 'x';\n"),
        ],
        &["app.t"],
    );
    let expected = [
        "CREATE TABLE \"r\".t (\n    id integer NOT NULL,\n    m app.t2 DEFAULT 'app.t'::app.t2,\n    n text  NOT NULL,\n    CONSTRAINT c CHECK ((app.t(id) > 0))\n);\nALTER TABLE ONLY \"r\".t ALTER COLUMN m SET STATISTICS 5;\n",
        "CREATE SEQUENCE \"r\".t_id_seq\n    START WITH 1;\n",
        "ALTER SEQUENCE \"r\".t_id_seq OWNED BY \"r\".t.id;\n",
        "ALTER TABLE ONLY \"r\".t ALTER COLUMN id SET DEFAULT nextval('\"r\".\"t_id_seq\"'::regclass);\n",
        "COPY \"r\".t (id, \"app.t\") FROM stdin;\n",
        "SELECT pg_catalog.setval('\"r\".\"t_id_seq\"', 7, true);\n",
        "CREATE UNIQUE INDEX i ON \"r\".t USING btree (app.t(id));\n",
        "ALTER TABLE ONLY \"r\".t\n    ADD CONSTRAINT g FOREIGN KEY (id) REFERENCES \"r\".t(id);\n",
        "COMMENT ON COLUMN \"r\".t.id IS 'app.t; app.t';\n",
    ];
    assert_eq!(statements, expected);
    assert_eq!(left_out, ["the default of app.t.n", "FK CONSTRAINT app.t f"]);
}

#[test]
fn partitions_come_with_their_parent_and_parents_with_their_heirs() {
    let entries = [
        ("TABLE", "p", "CREATE TABLE app.p (\n    a integer\n)\nPARTITION BY RANGE (a);\n"),
        ("TABLE", "p1", "CREATE TABLE app.p1 (\n    a integer\n);\n"),
        ("TABLE", "base", "CREATE TABLE app.base (\n    a integer\n);\n"),
        ("TABLE", "heir", "CREATE TABLE app.heir (\n    b integer\n)\nINHERITS (app.base, other.base);\n"),
        ("TABLE ATTACH", "p1", "ALTER TABLE ONLY app.p ATTACH PARTITION app.p1 FOR VALUES FROM (1) TO (2);\n"),
        ("TABLE DATA", "p1", "COPY app.p1 (a) FROM stdin;\n"),
        ("TABLE DATA", "heir", "COPY app.heir (a, b) FROM stdin;\n"),
    ];
    let (statements, left_out) = moved(&entries, &["app.p"]);
    assert_eq!(statements.len(), 4);
    assert_eq!(statements[2], "ALTER TABLE ONLY \"r\".p ATTACH PARTITION \"r\".p1 FOR VALUES FROM (1) TO (2);\n");
    assert_eq!(left_out, Vec::<String>::new());
    let (statements, left_out) = moved(&entries, &["p1"]);
    assert_eq!((statements.len(), left_out.as_slice()), (2, ["TABLE ATTACH app.p1".to_owned()].as_slice()));
    let (statements, left_out) = moved(&entries, &["heir"]);
    assert_eq!(statements[1], "CREATE TABLE \"r\".heir (\n    b integer\n)\nINHERITS (\"r\".base, other.base);\n");
    assert_eq!(left_out, ["the rows of app.base: only its columns are needed"]);
}

#[test]
fn what_cannot_be_is_told_before_anything_is_done() {
    let entries = [
        ("TABLE", "a", "CREATE TABLE app.a (\n    a integer\n);\n"),
        ("TABLE", "b", "CREATE TABLE app.b (\n    a integer\n);\n"),
        ("INDEX", "b", "CREATE INDEX b ON app.a USING btree (a);\n"),
    ];
    let archive = toc(&entries);
    let patterns = ["app.a", "app.x*", "y"].map(|pattern| pattern.parse().unwrap());
    let error = choose(&archive, &patterns).unwrap_err();
    assert_eq!(error, ExtractError::NoSuchTables { patterns: vec!["app.x*".into(), "*.y".into()] });
    let chosen = choose(&archive, &["app.*".parse().unwrap()]).unwrap();
    assert_eq!(chosen.without_data, [0, 1]);
    let error = move_to(&mut archive.clone(), &chosen, "r").unwrap_err();
    assert!(matches!(error, ExtractError::Collision { .. }), "{error}");
    let mut hostile = toc(&[("TABLE", "a", "CREATE TABLE app.a (); DROP TABLE app.b;")]);
    let chosen = choose(&hostile, &["app.a".parse().unwrap()]).unwrap();
    assert!(matches!(move_to(&mut hostile, &chosen, "r"), Err(ExtractError::Unexpected { .. })));
}
