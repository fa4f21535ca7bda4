-- The book again, by row number: rows come in order of arrival, so a batch of offers writes few pages, and the indexes
-- carry a row number where they carried two hashes. `method_bits` says which methods an offer can't have (-1: none).
ALTER TABLE book RENAME TO old_book;
DROP INDEX book_order;
DROP INDEX book_id;
DROP INDEX book_expires;
CREATE TABLE book (
    id          INTEGER PRIMARY KEY,
    maker       BLOB NOT NULL,
    offer_id    BLOB NOT NULL,
    sequence    INTEGER NOT NULL,
    raw         BLOB,
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
    seen        INTEGER NOT NULL,
    UNIQUE (offer_id, maker)
);
INSERT INTO book (maker, offer_id, sequence, raw, live, side, currency, floating, rank, amount_min, amount_max, methods,
                  expires, seen)
    SELECT maker, offer_id, sequence, raw, live, side, currency, floating, rank, amount_min, amount_max, methods,
           expires, seen
    FROM old_book ORDER BY seen;
DROP TABLE old_book;
CREATE INDEX book_order ON book (
    side, currency, floating, rank, id, amount_min, amount_max, method_bits, expires, methods, live
) WHERE live = 1;
CREATE INDEX book_expires ON book (expires);
