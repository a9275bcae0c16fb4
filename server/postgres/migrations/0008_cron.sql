-- The one row that says up to which minute the schedules were looked at. Who holds it locked is looking.
CREATE TABLE cron_state (
  single    boolean     PRIMARY KEY DEFAULT true CHECK (single),
  evaluated timestamptz -- a whole minute; null before the first look
);
INSERT INTO cron_state DEFAULT VALUES;

-- Published ticks whose end later ticks of their trigger wait for (overlap skip and queue), until they have ended.
CREATE TABLE cron_ticks (
  trigger_id   uuid        NOT NULL,
  minute       timestamptz NOT NULL,
  delivery_id  uuid        NOT NULL, -- its row in deliveries, from the moment that it is taken from the stream
  published_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (trigger_id, minute)
);
