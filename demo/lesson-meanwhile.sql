-- Caption photos while the new skill is trained, until the job has ended.
--
-- Run by demo/run beside lesson-train.sql. Prints how many captions were written meanwhile.
\set ON_ERROR_STOP on
\set QUIET on
\pset format unaligned
\pset tuples_only on
CREATE TEMP TABLE written (at timestamptz, photo integer, caption text, took interval);
DO $$
DECLARE
	picture record;
	begun timestamptz;
	words text;
BEGIN
	LOOP
		FOR picture IN SELECT id, img FROM photos ORDER BY id LOOP
			begun := clock_timestamp();
			words := mmgpt_caption(picture.img);
			INSERT INTO written VALUES (begun, picture.id, words, clock_timestamp() - begun);
		END LOOP;
		EXIT WHEN NOT EXISTS (SELECT FROM mmgpt_jobs WHERE state IN ('queued', 'preparing', 'running'));
	END LOOP;
END
$$;
SELECT format('Meanwhile another session had %s captions written, half of them within %s ms each.', count(*),
              round(extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY took)) * 1000))
FROM written;
