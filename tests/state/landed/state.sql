BEGIN TRANSACTION;
CREATE TABLE containers (
            id VARCHAR NOT NULL PRIMARY KEY,
            sandbox_id VARCHAR NOT NULL,
            name VARCHAR NOT NULL,
            attempt INTEGER NOT NULL,
            state VARCHAR NOT NULL,
            config BLOB NOT NULL,
            image_id VARCHAR NOT NULL,
            image_ref VARCHAR NOT NULL,
            created_at INTEGER NOT NULL,
            started_at INTEGER NOT NULL,
            finished_at INTEGER NOT NULL,
            pid INTEGER NOT NULL,
            exit_code INTEGER NOT NULL,
            signal INTEGER NOT NULL,
            reason VARCHAR NOT NULL,
            message VARCHAR NOT NULL,
            credentials JSON,
            stop_signal VARCHAR NOT NULL,
            log_path VARCHAR NOT NULL,
            spec VARCHAR NOT NULL
        );
INSERT INTO "containers" VALUES('7e3352d488ca06375e17b8dd7080885866dcf6e83502a08498aee31a7f72b310','c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07','a1',0,'running',X'0A040A026131121E0A1C6C6F63616C686F73743A34353739312F6368616F733A6C61746573741A05736C6565701A04313030305A0661312E6C6F67','sha256:ed310a4f33a0fdab74ff3fbbbfd827189e81601ee6fc48246f407b87f4c086c9','localhost:45791/chaos@sha256:11c32a0bfb7b5ecc0f9907574b9d1517c3347217a4cae569efddc9815dbffc49',1796046756717437515,1796046756741164898,0,26873,0,0,'','','{"uid": 0, "gid": 0, "groups": [0]}','','/var/db/cri-jails/logs/a1.log','{"id": "7e3352d488ca06375e17b8dd7080885866dcf6e83502a08498aee31a7f72b310", "sandbox_id": "c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07", "directory": "/var/db/cri-jails/state/containers/7e3352d488ca06375e17b8dd7080885866dcf6e83502a08498aee31a7f72b310", "layers": ["sha256:4835d05135f2a9ea97dd7dd438b6ae776815032642604bad1f9c9cd5abf0294a"], "process": {"argv": ["sleep", "1000"], "env": ["PATH=/bin", "HOSTNAME=a"], "cwd": "/", "user": {"user": "", "supplemental_groups": [], "groups_policy": "merge"}, "tty": false, "stdin": false, "stdin_once": false}, "os": "linux", "namespaces": {"network": "pod", "pid": "container", "ipc": "pod", "target_id": ""}, "hostname": "a", "mounts": [{"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/hosts", "target": "/etc/hosts", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}, {"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/hostname", "target": "/etc/hostname", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}, {"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/resolv.conf", "target": "/etc/resolv.conf", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}], "devices": [], "resources": {"hugepage_limits": {}, "unified": {}}, "security": {"privileged": false, "readonly_root": false, "no_new_privileges": false, "add_capabilities": [], "drop_capabilities": [], "masked_paths": [], "readonly_paths": []}, "log_path": "/var/db/cri-jails/logs/a1.log", "limits_parent": "", "annotations": {}}');
INSERT INTO "containers" VALUES('93d9cd9198e86082bf06b49d79cd92fca9023694f1c524cf3ee5757b4ec195e8','c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07','a2',0,'exited',X'0A040A026132121E0A1C6C6F63616C686F73743A34353739312F6368616F733A6C61746573741A0273681A022D631A066578697420375A0661322E6C6F67','sha256:ed310a4f33a0fdab74ff3fbbbfd827189e81601ee6fc48246f407b87f4c086c9','localhost:45791/chaos@sha256:11c32a0bfb7b5ecc0f9907574b9d1517c3347217a4cae569efddc9815dbffc49',1796046756747726980,1796046756760597467,1796046756766983815,26876,7,0,'Error','','{"uid": 0, "gid": 0, "groups": [0]}','','/var/db/cri-jails/logs/a2.log','{"id": "93d9cd9198e86082bf06b49d79cd92fca9023694f1c524cf3ee5757b4ec195e8", "sandbox_id": "c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07", "directory": "/var/db/cri-jails/state/containers/93d9cd9198e86082bf06b49d79cd92fca9023694f1c524cf3ee5757b4ec195e8", "layers": ["sha256:4835d05135f2a9ea97dd7dd438b6ae776815032642604bad1f9c9cd5abf0294a"], "process": {"argv": ["sh", "-c", "exit 7"], "env": ["PATH=/bin", "HOSTNAME=a"], "cwd": "/", "user": {"user": "", "supplemental_groups": [], "groups_policy": "merge"}, "tty": false, "stdin": false, "stdin_once": false}, "os": "linux", "namespaces": {"network": "pod", "pid": "container", "ipc": "pod", "target_id": ""}, "hostname": "a", "mounts": [{"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/hosts", "target": "/etc/hosts", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}, {"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/hostname", "target": "/etc/hostname", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}, {"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/resolv.conf", "target": "/etc/resolv.conf", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}], "devices": [], "resources": {"hugepage_limits": {}, "unified": {}}, "security": {"privileged": false, "readonly_root": false, "no_new_privileges": false, "add_capabilities": [], "drop_capabilities": [], "masked_paths": [], "readonly_paths": []}, "log_path": "/var/db/cri-jails/logs/a2.log", "limits_parent": "", "annotations": {}}');
INSERT INTO "containers" VALUES('461861002976af53e17479dce92dbecd9b4d3b02b1cd1550e666a9a44bdbf897','c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07','a3',0,'created',X'0A040A026133121E0A1C6C6F63616C686F73743A34353739312F6368616F733A6C61746573741A05736C6565701A04313030305A0661332E6C6F67','sha256:ed310a4f33a0fdab74ff3fbbbfd827189e81601ee6fc48246f407b87f4c086c9','localhost:45791/chaos@sha256:11c32a0bfb7b5ecc0f9907574b9d1517c3347217a4cae569efddc9815dbffc49',1796046756763757398,0,0,0,0,0,'','',NULL,'','/var/db/cri-jails/logs/a3.log','{"id": "461861002976af53e17479dce92dbecd9b4d3b02b1cd1550e666a9a44bdbf897", "sandbox_id": "c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07", "directory": "/var/db/cri-jails/state/containers/461861002976af53e17479dce92dbecd9b4d3b02b1cd1550e666a9a44bdbf897", "layers": ["sha256:4835d05135f2a9ea97dd7dd438b6ae776815032642604bad1f9c9cd5abf0294a"], "process": {"argv": ["sleep", "1000"], "env": ["PATH=/bin", "HOSTNAME=a"], "cwd": "/", "user": {"user": "", "supplemental_groups": [], "groups_policy": "merge"}, "tty": false, "stdin": false, "stdin_once": false}, "os": "linux", "namespaces": {"network": "pod", "pid": "container", "ipc": "pod", "target_id": ""}, "hostname": "a", "mounts": [{"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/hosts", "target": "/etc/hosts", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}, {"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/hostname", "target": "/etc/hostname", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}, {"source": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07/resolv.conf", "target": "/etc/resolv.conf", "readonly": false, "recursive_readonly": false, "propagation": "private", "options": [], "tmpfs": false, "image_layers": [], "image_path": ""}], "devices": [], "resources": {"hugepage_limits": {}, "unified": {}}, "security": {"privileged": false, "readonly_root": false, "no_new_privileges": false, "add_capabilities": [], "drop_capabilities": [], "masked_paths": [], "readonly_paths": []}, "log_path": "/var/db/cri-jails/logs/a3.log", "limits_parent": "", "annotations": {}}');
CREATE TABLE images (
            id VARCHAR NOT NULL PRIMARY KEY,
            manifest VARCHAR NOT NULL,
            tags JSON NOT NULL,
            digests JSON NOT NULL,
            size INTEGER NOT NULL,
            chains JSON NOT NULL,
            config VARCHAR NOT NULL,
            user VARCHAR NOT NULL,
            pinned BOOLEAN NOT NULL,
            pulled_at INTEGER NOT NULL
        );
INSERT INTO "images" VALUES('sha256:ed310a4f33a0fdab74ff3fbbbfd827189e81601ee6fc48246f407b87f4c086c9','sha256:11c32a0bfb7b5ecc0f9907574b9d1517c3347217a4cae569efddc9815dbffc49','["localhost:45791/chaos:latest"]','["localhost:45791/chaos@sha256:11c32a0bfb7b5ecc0f9907574b9d1517c3347217a4cae569efddc9815dbffc49"]',1032617,'["sha256:4835d05135f2a9ea97dd7dd438b6ae776815032642604bad1f9c9cd5abf0294a"]','{"architecture":"amd64","config":{"Env":["PATH=/bin"]},"created":"1970-01-01T00:00:00Z","history":[{"created":"1970-01-01T00:00:00Z","created_by":"COPY root/ /"},{"created":"1970-01-01T00:00:00Z","created_by":"ENV PATH=/bin","empty_layer":true}],"os":"linux","rootfs":{"diff_ids":["sha256:4835d05135f2a9ea97dd7dd438b6ae776815032642604bad1f9c9cd5abf0294a"],"type":"layers"}}','',0,1796046756596724691);
CREATE TABLE sandboxes (
            id VARCHAR NOT NULL PRIMARY KEY,
            name VARCHAR NOT NULL,
            namespace VARCHAR NOT NULL,
            uid VARCHAR NOT NULL,
            attempt INTEGER NOT NULL,
            state VARCHAR NOT NULL,
            runtime_handler VARCHAR NOT NULL,
            config BLOB NOT NULL,
            created_at INTEGER NOT NULL,
            addresses JSON NOT NULL,
            spec VARCHAR NOT NULL
        );
INSERT INTO "sandboxes" VALUES('c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07','a','x','a',0,'ready','',X'0A090A01611201611A01781201611A162F7661722F64622F6372692D6A61696C732F6C6F67734200',1796046756630822413,'["10.252.0.2"]','{"id": "c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07", "name": "a", "namespace": "x", "directory": "/var/db/cri-jails/state/sandboxes/c733ad53abb6f755a9568e944d70ab61110fb8d5c0a536d3e6147b3b28e7fe07", "runtime_directory": "/var/db/cri-jails/run/c733ad53abb6f755", "hostname": "a", "namespaces": {"network": "pod", "pid": "container", "ipc": "pod", "target_id": ""}, "limits_parent": "", "sysctls": {}, "annotations": {}, "privileged": false, "uid": "a", "port_mappings": []}');
COMMIT;
PRAGMA user_version = 2;
