-- Two messages of one chain that can't both be true, both signed by whom they accuse: the first that was met of each.
CREATE TABLE forks (
    chain    BLOB NOT NULL,
    trade_id BLOB NOT NULL,
    signer   BLOB NOT NULL,
    number   INTEGER NOT NULL,
    first    BLOB NOT NULL,
    second   BLOB NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (chain, signer)
) WITHOUT ROWID;
