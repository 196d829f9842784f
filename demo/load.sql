-- Load a folder of pictures drawn by scene.py, with what they truly show:
--
--	photos        the pictures; all that mmgpt is ever shown
--	labels        labels.csv as it is
--	true_counts   per picture and kind, how many there are; for each shelf the
--	              kinds seen anywhere on it, so that there are zeros too
--	kinds         the kinds of things with their plurals
--
-- The environment names the folder of these scripts and that of the pictures:
--
--	DEMO=demo PICTURES=demo/pictures psql -f demo/load.sql
\set ON_ERROR_STOP on
SET client_min_messages = warning;

DROP TABLE IF EXISTS photos, labels, true_counts, kinds CASCADE;

CREATE TABLE kinds (kind text PRIMARY KEY, plural text NOT NULL);
INSERT INTO kinds
SELECT kind, CASE WHEN kind = 'fish' THEN 'fish' WHEN kind = 'bus' THEN 'buses'
                  WHEN kind LIKE '%y' AND kind <> 'key' THEN regexp_replace(kind, 'y$', 'ies') ELSE kind || 's' END
FROM unnest('{dog,cat,rabbit,bird,fish,turtle,horse,frog,pig,elephant,butterfly,car,bus,bicycle,boat,plane,train,rocket,
              tree,flower,mushroom,apple,banana,strawberry,carrot,pizza,cake,cup,house,ball,star,heart,umbrella,key,
              book,clock,circle,square,triangle}'::text[]) AS kind;

CREATE TABLE labels (
	file text PRIMARY KEY,
	shelf text,
	width integer,
	height integer,
	background text,
	counts jsonb,
	objects jsonb
);
\copy labels FROM PROGRAM 'cat "$PICTURES/labels.csv"' WITH (FORMAT csv, HEADER)

CREATE TEMP TABLE incoming (file text, base64 text);
\copy incoming FROM PROGRAM '"$DEMO/encode-pictures" "$PICTURES"'

CREATE TABLE photos (
	id integer PRIMARY KEY,
	file text UNIQUE,
	shelf text,
	img bytea NOT NULL
);
-- JPEG and PNG are compressed already
ALTER TABLE photos ALTER img SET STORAGE EXTERNAL;
INSERT INTO photos
SELECT row_number() OVER (ORDER BY shelf, file), file, shelf, decode(base64, 'base64')
FROM incoming JOIN labels USING (file)
ORDER BY 1;

CREATE TABLE true_counts (
	photo integer REFERENCES photos,
	what text,
	n integer,
	PRIMARY KEY (photo, what)
);
INSERT INTO true_counts
SELECT photos.id, kinds.plural, coalesce((labels.counts ->> kinds.kind)::integer, 0)
FROM labels
JOIN photos USING (file)
JOIN (SELECT DISTINCT shelf, jsonb_object_keys(counts) AS kind FROM labels) AS shelf_kinds
  ON shelf_kinds.shelf IS NOT DISTINCT FROM labels.shelf
JOIN kinds USING (kind);

ANALYZE;
