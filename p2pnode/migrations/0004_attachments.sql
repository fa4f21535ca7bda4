-- Contents that are here and verified, ours and those that were shown to us.
CREATE TABLE attachment_contents (
    content BLOB PRIMARY KEY,
    size    INTEGER NOT NULL
) WITHOUT ROWID;

-- Encrypted parts of contents. By size as well: a false announcement must not touch the parts of the true content.
CREATE TABLE attachment_parts (
    content BLOB NOT NULL,
    size    INTEGER NOT NULL,
    part    INTEGER NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (content, size, part)
) WITHOUT ROWID;

-- To whom we have shown a content: nobody else gets it.
CREATE TABLE attachment_shown (
    content BLOB NOT NULL,
    persona BLOB NOT NULL,
    PRIMARY KEY (content, persona)
) WITHOUT ROWID;

-- What was shown to us and by whom. `state`: wanted, here, or refused (it was not what it claimed to be).
CREATE TABLE attachment_wanted (
    content BLOB NOT NULL,
    persona BLOB NOT NULL,
    own     BLOB NOT NULL,
    raw     BLOB NOT NULL,
    state   TEXT NOT NULL,
    PRIMARY KEY (content, persona)
) WITHOUT ROWID;
CREATE INDEX attachment_open ON attachment_wanted (state);
