-- Trades: the snapshot is the truth; `log` is the audit trail; `messages` is the transcript, both ways.
CREATE TABLE trades (
    trade_id      BLOB PRIMARY KEY,
    snapshot      BLOB NOT NULL,
    phase         TEXT NOT NULL,
    open          INTEGER NOT NULL,
    offer_id      BLOB NOT NULL,
    sent          INTEGER NOT NULL DEFAULT 0,
    sent_head     BLOB NOT NULL,
    received      INTEGER NOT NULL DEFAULT 0,
    received_head BLOB NOT NULL,
    watch_from    INTEGER,
    created       INTEGER NOT NULL,
    updated       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX trades_by_offer ON trades (offer_id);

CREATE TABLE log (
    n        INTEGER PRIMARY KEY,
    trade_id BLOB NOT NULL,
    at       INTEGER NOT NULL,
    phase    TEXT NOT NULL,
    event    BLOB NOT NULL
);
CREATE INDEX log_by_trade ON log (trade_id);

CREATE TABLE messages (
    trade_id BLOB NOT NULL,
    outgoing INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    id       BLOB NOT NULL,
    raw      BLOB NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (trade_id, outgoing, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX messages_by_id ON messages (id, outgoing);

-- What has been decided and not yet done. A row leaves in the commit that records its result.
CREATE TABLE effects (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    trade_id BLOB NOT NULL,
    effect   BLOB NOT NULL
);

CREATE TABLE outbox (
    id        BLOB PRIMARY KEY,
    n         INTEGER NOT NULL,
    trade_id  BLOB NOT NULL,
    recipient BLOB NOT NULL,
    raw       BLOB NOT NULL,
    created   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX outbox_by_recipient ON outbox (recipient, n);

CREATE TABLE timers (
    trade_id  BLOB NOT NULL,
    name      TEXT NOT NULL,
    at_time   INTEGER,
    at_height INTEGER,
    PRIMARY KEY (trade_id, name)
) WITHOUT ROWID;

-- Every escrow key that any peer ever showed us: a key seen in one trade is refused in another.
CREATE TABLE escrow_keys (
    key      BLOB PRIMARY KEY,
    trade_id BLOB NOT NULL
) WITHOUT ROWID;

-- Coins that takers have shown us: one coin serves one open trade at a time, or a single one could take every offer.
CREATE TABLE pledges (
    coin     BLOB NOT NULL,
    trade_id BLOB NOT NULL,
    PRIMARY KEY (coin, trade_id)
) WITHOUT ROWID;

-- `state`: open, taken, revoked or expired. `details`: our payment details by method. `published`: the newest sequence,
-- of the offer or of its tombstone, that the DHT has taken; smaller than `sequence` means that it is still to be done.
CREATE TABLE own_offers (
    offer_id  BLOB PRIMARY KEY,
    sequence  INTEGER NOT NULL,
    raw       BLOB NOT NULL,
    details   BLOB NOT NULL,
    state     TEXT NOT NULL,
    expires   INTEGER NOT NULL,
    created   INTEGER NOT NULL,
    updated   INTEGER NOT NULL,
    published INTEGER NOT NULL DEFAULT -1,
    stored_on INTEGER
) WITHOUT ROWID;

-- `live` 0: a tombstone, whose `raw` is NULL. `floating`: 0 a fixed price, 1 a margin. `rank`: the price or the margin, its
-- sign turned where buyers are listed, so that ascending is best first for the taker.
CREATE TABLE book (
    maker      BLOB NOT NULL,
    offer_id   BLOB NOT NULL,
    sequence   INTEGER NOT NULL,
    raw        BLOB,
    live       INTEGER NOT NULL,
    side       INTEGER NOT NULL,
    currency   TEXT NOT NULL,
    floating   INTEGER NOT NULL,
    rank       INTEGER NOT NULL,
    amount_min INTEGER NOT NULL,
    amount_max INTEGER NOT NULL,
    methods    TEXT NOT NULL,
    expires    INTEGER NOT NULL,
    seen       INTEGER NOT NULL,
    PRIMARY KEY (maker, offer_id)
) WITHOUT ROWID;
CREATE INDEX book_order ON book (
    live, side, currency, floating, rank, maker, offer_id, expires, amount_min, amount_max, methods
);
CREATE INDEX book_id ON book (offer_id);
CREATE INDEX book_expires ON book (expires);

CREATE TABLE announcements (
    id       BLOB PRIMARY KEY,
    persona  BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    raw      BLOB NOT NULL,
    expires  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX announcements_by_persona ON announcements (persona, sequence);

CREATE TABLE contacts (
    persona  BLOB PRIMARY KEY,
    sequence INTEGER NOT NULL,
    raw      BLOB NOT NULL,
    expires  INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE notices (
    n        INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    topic    TEXT NOT NULL,
    trade_id BLOB,
    offer_id BLOB,
    phase    TEXT
);

CREATE TABLE idempotency (
    key     TEXT PRIMARY KEY,
    request BLOB NOT NULL,
    status  INTEGER NOT NULL,
    body    BLOB NOT NULL,
    at      INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
