-- When the copies of another disk were made that this database came from, in Unix seconds. A row is put into the copy.
CREATE TABLE restored (
    n    INTEGER PRIMARY KEY AUTOINCREMENT,
    made INTEGER NOT NULL
);

-- Chains (trades, conversations) of a restored database. `since`: the block from which on the other side's record is waited
-- for; NULL: not yet. `waited`: 0 nothing is signed in this chain; 1 waited in vain, and it goes on without.
CREATE TABLE held (
    chain  BLOB PRIMARY KEY,
    since  INTEGER,
    waited INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
