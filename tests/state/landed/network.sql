BEGIN TRANSACTION;
CREATE TABLE attachments (
    network TEXT NOT NULL,
    owner TEXT NOT NULL,
    container TEXT NOT NULL,
    boot TEXT NOT NULL,
    configuration TEXT NOT NULL,
    attachment TEXT NOT NULL,
    result TEXT,
    leaving INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (network, owner)
) WITHOUT ROWID;
INSERT INTO "attachments" VALUES('down0','c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/eth0','c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07','942233e6-e717-4d85-8781-dc639b289a81','{"name":"down0","cniVersion":"1.1.0","disableCheck":false,"disableGC":false,"plugins":[{"type":"bridge","bridge":"down0","isGateway":true,"hairpinMode":true,"mtu":0,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.252.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"masquerade","nonMasqueradeCIDRs":["10.252.0.0/16"]},{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}','{"containerId":"c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07","ifname":"eth0","netns":"/proc/26870/ns/net","runtimeConfig":{},"args":{"IgnoreUnknown":"1","K8S_POD_NAMESPACE":"x","K8S_POD_NAME":"a","K8S_POD_INFRA_CONTAINER_ID":"c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07","K8S_POD_UID":"a"}}','{"cniVersion":"1.1.0","interfaces":[{"name":"down0","mac":"96:c7:0a:ca:03:36","mtu":1500},{"name":"podpwmlkqknamr","mac":"ba:fe:f6:25:cb:f9","mtu":1500},{"name":"eth0","mac":"ca:60:39:a3:d4:e0","mtu":1500,"sandbox":"/proc/26870/ns/net"}],"ips":[{"interface":2,"address":"10.252.0.2/16","gateway":"10.252.0.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}',0);
CREATE TABLE claims (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    pool TEXT NOT NULL,
    value TEXT NOT NULL,
    owner TEXT NOT NULL,
    boot TEXT NOT NULL,
    UNIQUE (pool, value)
);
INSERT INTO "claims" VALUES(1,'gateways','10.252.0.1','gateways','942233e6-e717-4d85-8781-dc639b289a81');
INSERT INTO "claims" VALUES(2,'addresses of network down0','10.252.0.2','c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/eth0','942233e6-e717-4d85-8781-dc639b289a81');
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "notes" VALUES('addresses of network down0: last of set 0','10.252.0.2');
CREATE INDEX attachments_by_container ON attachments (container);
CREATE INDEX claims_by_owner ON claims (pool, owner);
COMMIT;
PRAGMA user_version = 1;
