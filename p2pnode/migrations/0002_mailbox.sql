-- Copies of messages in the outbox that wait in their recipients' mailboxes. `records`: the slip, then the chunks. A row
-- leaves when its records are withdrawn or have expired; with it goes the secret that they were made from.
CREATE TABLE mail (
    message   BLOB PRIMARY KEY,
    recipient BLOB NOT NULL,
    secret    BLOB NOT NULL,
    records   BLOB NOT NULL,
    created   INTEGER NOT NULL,
    expires   INTEGER NOT NULL
) WITHOUT ROWID;
