-- Where the coins of trades on an own offer are paid to, if not to the wallet. It is in no record that others see before
-- the contract.
CREATE TABLE offer_payouts (
    offer_id BLOB PRIMARY KEY,
    script   BLOB NOT NULL
) WITHOUT ROWID;
