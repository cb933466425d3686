//! The rows that are exported: what they look like, and how many make a gigabyte of COPY text.

/// A table, filled by one query over `generate_series`.
pub struct TableData {
    pub name: &'static str,
    /// For one GB (10^9 bytes) of COPY text of the whole database.
    pub rows_per_gb: f64,
    /// `{rows}` stands for the number of rows.
    pub query: &'static str,
    /// Afterwards.
    pub key: Option<&'static str>,
}

/// What the queries use; dropped again when the tables are full. `pick`: one of an array's elements. `prose`: so many words,
/// the common ones more often, which compress as text does and not as a few repeated phrases.
pub const FUNCTIONS: &str = "CREATE SCHEMA making;
    CREATE FUNCTION making.pick(anyarray) RETURNS anyelement LANGUAGE sql VOLATILE
        AS 'SELECT $1[1 + floor(random() * cardinality($1))::int]';
    CREATE FUNCTION making.prose(words int) RETURNS text LANGUAGE sql VOLATILE AS $prose$
        SELECT string_agg((string_to_array('the of and to a in is it that was for on are with as at be this have from or had by not
            but some what there we can out other were all your when up use word how said an each she which do their time if will
            way about many then them would write like so these her long make thing see him two has look more day could go come
            did my sound no most number who over know water than call first people may down side been now find any new work
            part take get place made live where after back little only round man year came show every good me give our under
            pump valve pressure seal order delivery invoice customer refund parcel warehouse temperature schedule technician',
            ' '))[1 + floor(power(random(), 1.7) * 155)::int], ' ') FROM generate_series(1, words) $prose$";

pub const DROP_FUNCTIONS: &str = "DROP SCHEMA making CASCADE";

/// Half of all rows; each of the two groups is made by one session.
pub const MIXED: &[&[TableData]] = &[&[MEASUREMENTS, LEDGER], &[EVENTS, ACCOUNTS]];

/// The table with half of all rows alone.
pub const HALF: &[&[TableData]] = &[&[MEASUREMENTS]];

pub const GIANT: &[&[TableData]] = &[&[DOCUMENTS]];

/// Numerics and timestamps.
const MEASUREMENTS: TableData = TableData {
    name: "measurements",
    rows_per_gb: 3_400_000.0,
    query: "SELECT i::bigint AS id, (i % 997)::int AS sensor_id,
                   '2024-01-01 00:00:00+00'::timestamptz + i * interval '1.7 s' AS taken_at,
                   '2024-01-01 00:00:00+00'::timestamptz + i * interval '1.7 s' + random() * interval '1 s' AS received_at,
                   (random() * 10000)::numeric(18, 6) AS value, (random() * 100)::numeric(12, 3) AS low,
                   (100 + random() * 100)::numeric(12, 3) AS high, (random() * 4)::smallint AS quality
              FROM generate_series(1, {rows}) i",
    key: Some("id"),
};

/// As `pgbench -i` makes them, with balances as after a run.
const ACCOUNTS: TableData = TableData {
    name: "pgbench_accounts",
    rows_per_gb: 1_000_000.0,
    query: "SELECT aid::int AS aid, ((aid - 1) / 100000 + 1)::int AS bid, (random() * 20000 - 10000)::int AS abalance,
                   ''::char(84) AS filler
              FROM generate_series(1, {rows}) aid",
    key: Some("aid"),
};

const LEDGER: TableData = TableData {
    name: "ledger",
    rows_per_gb: 2_120_000.0,
    query: "SELECT gen_random_uuid() AS id, (random() * 1e6)::int AS account_id, (random() * 5000 - 1000)::numeric(14, 2) AS amount,
                   making.pick(ARRAY['EUR', 'USD', 'GBP', 'CHF', 'SEK']) AS currency, '2023-06-01'::timestamp + random() * interval '700 days' AS booked_at,
                   'Invoice ' || (random() * 1e7)::int || ', ' || making.pick(ARRAY['transfer', 'card payment', 'direct debit', 'refund', 'standing order']) AS memo
              FROM generate_series(1, {rows}) i",
    key: Some("id"),
};

const EVENTS: TableData = TableData {
    name: "events",
    rows_per_gb: 280_000.0,
    query: "SELECT i::bigint AS id, '2024-03-01 00:00:00+00'::timestamptz + i * interval '3.1 s' AS at, jsonb_build_object(
                'type', making.pick(ARRAY['view', 'click', 'search', 'purchase', 'signup', 'logout']), 'version', 3, 'session', md5(i::text),
                'user', jsonb_build_object('id', (random() * 1e6)::int,
                    'name', making.pick(ARRAY['Amira', 'Bjarne', 'Chloë', 'Dimitri', 'Eszter', 'Fernando', 'Grażyna', 'Hiro']) || ' '
                        || making.pick(ARRAY['Nowak', 'Okafor', 'Smith', 'Ødegård', 'Yılmaz', 'Žukauskas', 'García', 'Li']),
                    'email', 'user' || (random() * 1e6)::int || '@example.org', 'verified', random() < 0.8),
                'client', jsonb_build_object('ip', concat_ws('.', 10, i % 256, i / 256 % 256, (random() * 255)::int),
                    'agent', making.pick(ARRAY['Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0',
                        'Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15',
                        'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36']),
                    'locale', making.pick(ARRAY['en-GB', 'de-DE', 'fr-FR', 'sv-SE'])),
                'page', jsonb_build_object('path', '/products/' || (random() * 50000)::int || '/details',
                    'referrer', making.pick(ARRAY['https://www.example.com/', 'https://search.example.net/?q=pump', null]),
                    'duration_ms', (random() * 90000)::int, 'scroll', round(random()::numeric, 4)),
                'items', (SELECT jsonb_agg(jsonb_build_object('sku', substr(md5((i + n)::text), 1, 10), 'quantity', n,
                    'price', round((random() * 500)::numeric, 2),
                    'title', making.pick(ARRAY['Circulation pump, cast iron', 'Hose, 25 m, reinforced', 'Valve, brass, 3/4 inch', 'Filter cartridge'])))
                    FROM generate_series(1, 1 + i % 5) n),
                'device', gen_random_uuid(), 'trace', substr(md5(random()::text), 1, 16),
                'signature', translate(encode(sha512(int8send(i)), 'base64'), E'\\n', ''),
                'message', making.prose(15 + (random() * 45)::int)) AS payload
              FROM generate_series(1, {rows}) i",
    key: Some("id"),
};

/// Wide text, which costs the server little: so that several streams of 40 MB/s fit two cores.
const DOCUMENTS: TableData = TableData {
    name: "documents",
    rows_per_gb: 900_000.0,
    query: "WITH pages AS MATERIALIZED (SELECT array_agg(page) AS all_pages FROM (
                SELECT string_agg(making.pick(ARRAY['The pump was taken apart and cleaned. ', 'Pressure held at four bar for an hour. ',
                    'No leak was found at the flange. ', 'The seal is worn and should be replaced at the next visit. ',
                    'Readings were taken every ten minutes; see the table. ', 'The customer was present. ',
                    'A second valve had been fitted upstream, contrary to the drawing. ', 'Work continues on Thursday. ']) || n, ' ') AS page
                  FROM generate_series(1, 500 * 15) n GROUP BY n % 500) made)
            SELECT i::bigint AS id, md5(i::text) AS reference, making.pick(all_pages) || md5((i + 1)::text) || left(making.pick(all_pages), 300) AS body
              FROM generate_series(1, {rows}) i, pages",
    key: None,
};

impl TableData {
    pub fn statement(&self, gigabytes: f64) -> String {
        let rows = (self.rows_per_gb * gigabytes).round().max(1.0) as u64;
        format!("CREATE TABLE {} AS {}", self.name, self.query.replace("{rows}", &rows.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_table_has_half_of_all_rows() {
        let all: f64 = MIXED.iter().copied().flatten().map(|table| table.rows_per_gb).sum();
        assert!((MEASUREMENTS.rows_per_gb / all - 0.5).abs() < 0.01, "{}", MEASUREMENTS.rows_per_gb / all);
    }
}
