CREATE TABLE people (id int PRIMARY KEY, name text, born date, balance numeric(12,2), tags text[], doc jsonb, raw bytea);
INSERT INTO people SELECT i, CASE WHEN i % 17 = 0 THEN NULL ELSE 'Name ' || i || ' ' || chr(200 + i % 50) END, date '1970-01-01' + i * 37,
  i * 13.37 - 500, ARRAY['a' || i % 3, 'b' || i % 5], jsonb_build_object('n', i, 'even', i % 2 = 0), decode(md5(i::text), 'hex') FROM generate_series(1, 40) i;
CREATE TABLE notes (id serial PRIMARY KEY, body text);
INSERT INTO notes (body) VALUES ('plain'), (''), (NULL), (E'two\nlines'), (E'tab\there'), (E'back\\slash'), (E'\\.'), (E'\\.\n\\.\n'), (E'cr\rlf\r\n'), ('Grüße, 世界'),
  (repeat('a long one ', 150));
CREATE TABLE marker (body text);
INSERT INTO marker VALUES (E'\\.'), (E'\\'), ('.'), (''), (E'\n');
CREATE TABLE nothing (id int);
CREATE TABLE columnless ();
INSERT INTO columnless DEFAULT VALUES; INSERT INTO columnless DEFAULT VALUES; INSERT INTO columnless DEFAULT VALUES;
SELECT lo_from_bytea(16500, convert_to(repeat('large object ', 120), 'UTF8')), lo_from_bytea(16501, ''), lo_from_bytea(3000000001, '\x00ff0a5c2e0a');
