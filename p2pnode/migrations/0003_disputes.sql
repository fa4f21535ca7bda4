-- Conversations of a party with an arbiter, by their chain (`case_id`): for a trader one for each arbiter that a contract
-- names, for an arbiter one for each party of a case. Their messages are in `messages`, under the chain as trade id.
CREATE TABLE conversations (
    chain         BLOB PRIMARY KEY,
    trade_id      BLOB NOT NULL,
    party         BLOB NOT NULL,
    arbiter       BLOB NOT NULL,
    branch        INTEGER NOT NULL,
    side          INTEGER NOT NULL,
    arbitrates    INTEGER NOT NULL,
    sent          INTEGER NOT NULL DEFAULT 0,
    sent_head     BLOB NOT NULL,
    received      INTEGER NOT NULL DEFAULT 0,
    received_head BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX conversations_by_trade ON conversations (trade_id, arbitrates);

-- Cases that this node decides. `watch_from`: the height from which the escrow is looked for; NULL: not watched.
CREATE TABLE cases (
    trade_id    BLOB PRIMARY KEY,
    contract_id BLOB NOT NULL,
    snapshot    BLOB NOT NULL,
    phase       TEXT NOT NULL,
    open        INTEGER NOT NULL,
    watch_from  INTEGER,
    created     INTEGER NOT NULL,
    updated     INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE case_log (
    n        INTEGER PRIMARY KEY,
    trade_id BLOB NOT NULL,
    at       INTEGER NOT NULL,
    phase    TEXT NOT NULL,
    event    BLOB NOT NULL
);
CREATE INDEX case_log_by_trade ON case_log (trade_id);

CREATE TABLE case_effects (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    trade_id BLOB NOT NULL,
    effect   BLOB NOT NULL
);

CREATE TABLE case_timers (
    trade_id  BLOB NOT NULL,
    name      TEXT NOT NULL,
    at_height INTEGER NOT NULL,
    PRIMARY KEY (trade_id, name)
) WITHOUT ROWID;
