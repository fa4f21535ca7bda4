-- The book once more, lighter to write: the two hashes that name an offer stand in `raw` already, so one short key
-- (`offerbook.key_of`) takes their place. Of an offer that is gone, `raw` keeps maker and id.
ALTER TABLE book RENAME TO old_book;
DROP INDEX book_order;
DROP INDEX book_expires;
CREATE TABLE book (
    id          INTEGER PRIMARY KEY,
    key         BLOB NOT NULL UNIQUE,
    sequence    INTEGER NOT NULL,
    raw         BLOB NOT NULL,
    live        INTEGER NOT NULL,
    side        INTEGER NOT NULL,
    currency    TEXT NOT NULL,
    floating    INTEGER NOT NULL,
    rank        INTEGER NOT NULL,
    amount_min  INTEGER NOT NULL,
    amount_max  INTEGER NOT NULL,
    method_bits INTEGER NOT NULL DEFAULT -1,
    methods     TEXT NOT NULL,
    expires     INTEGER NOT NULL,
    seen        INTEGER NOT NULL
);
INSERT INTO book (id, key, sequence, raw, live, side, currency, floating, rank, amount_min, amount_max, method_bits,
                  methods, expires, seen)
    SELECT id, CAST(substr(offer_id, 1, 16) || substr(maker, 1, 8) AS BLOB), sequence,
           CASE live WHEN 1 THEN raw ELSE CAST(maker || offer_id AS BLOB) END, live, side, currency, floating, rank,
           amount_min, amount_max, method_bits, methods, expires, seen
    FROM old_book ORDER BY id;
DROP TABLE old_book;
CREATE INDEX book_order ON book (
    side, currency, floating, rank, id, amount_min, amount_max, method_bits, expires, methods, live
) WHERE live = 1;
CREATE INDEX book_expires ON book (expires);
