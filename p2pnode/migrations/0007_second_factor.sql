-- The second factor: its secret, what was used of it and the wrong codes, encrypted under a key of the node's seed.
CREATE TABLE second_factor (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    sealed BLOB NOT NULL
);
