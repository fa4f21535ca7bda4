-- Receipts of our own trades: our half, the counterparty's, and what we say of it in public.
-- `public`: our consent. `record`: the rating that is published, as a raw envelope; NULL: none.
CREATE TABLE receipts (
    trade_id  BLOB PRIMARY KEY,
    own_half  BLOB,
    peer_half BLOB,
    public    INTEGER NOT NULL DEFAULT 0,
    mark      INTEGER NOT NULL DEFAULT 0,
    note      TEXT NOT NULL DEFAULT '',
    record    BLOB,
    expires   INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- Rulings of ours that we may show: heights at which we were asked and ruled, and the record that is published.
CREATE TABLE rulings_given (
    trade_id BLOB PRIMARY KEY,
    opened   INTEGER NOT NULL,
    ruled    INTEGER,
    record   BLOB,
    expires  INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- Records about personas, verified but for what the chain says. `slot` tells an author's records of one kind apart;
-- `first` and `second` are the personas that it is about; `claim` is what it says of `outpoint`.
CREATE TABLE testimony (
    kind     INTEGER NOT NULL,
    author   BLOB NOT NULL,
    slot     BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    first    BLOB NOT NULL,
    second   BLOB,
    outpoint BLOB NOT NULL,
    claim    BLOB NOT NULL,
    raw      BLOB NOT NULL,
    expires  INTEGER NOT NULL,
    PRIMARY KEY (kind, author, slot)
) WITHOUT ROWID;
CREATE INDEX testimony_first ON testimony (first);
CREATE INDEX testimony_second ON testimony (second);

-- What our own chain says of a claim. `state`: proved, false, or spent (a bond). For a bond `value` is its amount,
-- `funded` the height of its block and `paid` its lock height. `checked`: the height of the tip at that time.
CREATE TABLE anchors (
    outpoint BLOB NOT NULL,
    claim    BLOB NOT NULL,
    state    TEXT NOT NULL,
    value    INTEGER NOT NULL DEFAULT 0,
    fee      INTEGER NOT NULL DEFAULT 0,
    funded   INTEGER NOT NULL DEFAULT 0,
    paid     INTEGER NOT NULL DEFAULT 0,
    checked  INTEGER NOT NULL,
    PRIMARY KEY (outpoint, claim)
) WITHOUT ROWID;

-- Arbiters that gave two rulings in one contract, with the proof. `own`: we have put it together, and publish it.
CREATE TABLE equivocations (
    arbiter     BLOB NOT NULL,
    contract_id BLOB NOT NULL,
    raw         BLOB NOT NULL,
    own         INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    PRIMARY KEY (arbiter, contract_id)
) WITHOUT ROWID;

-- When this node first saw an arbiter announced, in Unix seconds.
CREATE TABLE arbiters_seen (
    persona BLOB PRIMARY KEY,
    since   INTEGER NOT NULL
) WITHOUT ROWID;

-- Bonds of our own personas. `height` and `block` once it is buried, `spent` the transaction that took it back.
CREATE TABLE bonds (
    txid        BLOB NOT NULL,
    vout        INTEGER NOT NULL,
    persona     BLOB NOT NULL,
    value       INTEGER NOT NULL,
    lock_height INTEGER NOT NULL,
    from_height INTEGER NOT NULL,
    height      INTEGER,
    block       BLOB,
    spent       BLOB,
    record      BLOB,
    expires     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (txid, vout)
) WITHOUT ROWID;

-- The user's own word on personas.
CREATE TABLE acquaintances (
    persona  BLOB PRIMARY KEY,
    standing TEXT NOT NULL DEFAULT '',
    note     TEXT NOT NULL DEFAULT '',
    updated  INTEGER NOT NULL
) WITHOUT ROWID;
