-- Write the gallery: one self-contained HTML page, made wholly in SQL.
--
--	psql -qAt -f demo/gallery.sql > demo/out/index.html      (after load.sql and lesson-*.sql)
--
-- First the queries that ask are stored as text in a table and run from there, so
-- that the page can show exactly what made it.  Then the page is put together from
-- their results.  Every text goes through pg_temp.html, the model's answers too.
\set ON_ERROR_STOP on
\set QUIET on
\pset format unaligned
\pset tuples_only on
SET client_min_messages = warning;

DROP TABLE IF EXISTS gallery_queries, captions, counts, dialogues;

CREATE TABLE gallery_queries (position serial, name text, title text, query text);
INSERT INTO gallery_queries (name, title, query) VALUES
('captions', 'A caption for each picture',
$$SELECT id AS photo, mmgpt_caption(img) AS caption
FROM photos$$),
('counts', 'Counts of every kind on the shelf, beside the truth',
$$SELECT photo, what, n AS truly, mmgpt_count(img, what) AS counted
FROM photos JOIN true_counts ON photo = id$$),
('dialogues', 'A dialogue of three rounds about each picture',
$$SELECT id AS photo, third AS dialogue
FROM photos
JOIN (VALUES ('street',  'bicycles', 'umbrellas'),
             ('garden',  'cats',     'trees'),
             ('kitchen', 'bananas',  'clocks'),
             ('toys',    'planes',   'triangles')) AS asked (shelf, one, other) USING (shelf),
     mmgpt_chat_turn(img, NULL,   'What do you see?') AS first,
     mmgpt_chat_turn(img, first,  format('How many %s are there?', one)) AS second,
     mmgpt_chat_turn(img, second, format('And %s?', other)) AS third$$);

SELECT format('CREATE TABLE %I AS %s', name, query) FROM gallery_queries ORDER BY position \gexec

-- Escape a text for HTML, in an element or a quoted attribute.
CREATE FUNCTION pg_temp.html(plain text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT replace(replace(replace(replace(replace(plain,
	'&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;') $$;

-- Escape a query and mark its keywords and the functions of mmgpt.
CREATE FUNCTION pg_temp.html_query(query text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT regexp_replace(regexp_replace(pg_temp.html(query),
	'\m(SELECT|FROM|JOIN|ON|AS|USING|VALUES|WHERE|NULL)\M', '<b>\1</b>', 'g'),
	'\m(mmgpt_\w+)\M', '<i>\1</i>', 'g') $$;

-- Show a share as a whole percentage, never 100 where something is missing.
CREATE FUNCTION pg_temp.percent(part bigint, whole bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN whole = 0 THEN '–' ELSE floor(100.0 * part / whole) || ' %' END $$;

-- Tell which captions name every kind that the picture shows.
CREATE TEMP VIEW caption_facts AS
SELECT photos.id AS photo, shelf, caption,
       coalesce(bool_and(caption ~* ('\m(' || kind || '|' || plural || ')\M')) FILTER (WHERE n > 0),
                caption ~* '\mno\M') AS names_all
FROM photos
JOIN captions ON captions.photo = id
LEFT JOIN true_counts ON true_counts.photo = id
LEFT JOIN kinds ON plural = what
GROUP BY id, shelf, caption;

SELECT $$<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>mmgpt: pictures, asked in SQL</title>
<style>
:root {
	--page: #f6f5f1; --card: #fffefb; --ink: #1d2530; --soft: #5d6672; --line: #e2dfd6;
	--accent: #2a5d8f; --accent-soft: #e6eef5; --good: #2c7a4b; --good-soft: #e5f2e9;
	--bad: #b3402e; --bad-soft: #fae8e4; --code: #f0eee7;
}
@media (prefers-color-scheme: dark) {
	:root {
		--page: #14181d; --card: #1c2229; --ink: #e7e6e1; --soft: #9aa4af; --line: #2e363f;
		--accent: #86b7e4; --accent-soft: #22384d; --good: #7fcf9d; --good-soft: #1c3527;
		--bad: #f0978a; --bad-soft: #43241f; --code: #161b21;
	}
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
	margin: 0; background: var(--page); color: var(--ink);
	font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 78rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 4rem; }
h1 { font-size: clamp(2rem, 5.5vw, 3.4rem); line-height: 1.08; letter-spacing: -.025em; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 3.25rem 0 1rem; display: flex; align-items: baseline; gap: .75rem; }
h2 small { font-size: .875rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }
.lead { font-size: clamp(1.05rem, 2vw, 1.2rem); color: var(--soft); max-width: 44rem; margin: 0; }
code, pre { font-family: ui-monospace, "SF Mono", "Cascadia Code", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 1px; margin: 2.25rem 0 0;
	background: var(--line); border: 1px solid var(--line); border-radius: .9rem; overflow: hidden; }
.figures div { background: var(--card); padding: 1.1rem 1.25rem 1.2rem; }
.figures dt { font-size: .875rem; color: var(--soft); }
.figures dd { margin: .15rem 0 0; font-size: 2rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures span { display: block; font-size: .8125rem; font-weight: 400; letter-spacing: 0; color: var(--soft); line-height: 1.4; }
.queries { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; align-items: start; }
.queries figure { margin: 0; min-width: 0; border: 1px solid var(--line); border-radius: .9rem; background: var(--card); overflow: hidden; }
.queries figure:last-child { grid-column: 1 / -1; }
.queries figcaption { padding: .8rem 1.1rem .7rem; font-size: .9rem; font-weight: 600; }
.queries pre { margin: 0; padding: .9rem 1.1rem 1rem; overflow-x: auto; font-size: .8125rem; line-height: 1.6; background: var(--code); border-top: 1px solid var(--line); }
pre b { color: var(--accent); font-weight: 600; }
pre i { color: var(--good); font-style: normal; font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); gap: 1.25rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .9rem; overflow: hidden; display: flex; flex-direction: column; }
.card img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: cover; background: var(--code); border-bottom: 1px solid var(--line); }
.body { padding: 1rem 1.1rem 1.15rem; display: flex; flex-direction: column; gap: .85rem; flex: 1; }
.file { font-size: .78rem; color: var(--soft); margin: 0; display: flex; justify-content: space-between; gap: 1rem; }
.caption { margin: .2rem 0 0; font-size: 1.0625rem; font-weight: 600; line-height: 1.35; text-wrap: pretty; }
.caption.wrong { text-decoration: underline wavy var(--bad) 1px; text-underline-offset: .28em; }
.counts { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; }
.counts li { font-size: .8125rem; padding: .16rem .6rem; border-radius: 99rem; background: var(--good-soft); color: var(--good); font-weight: 600; font-variant-numeric: tabular-nums; }
.counts li.wrong { background: var(--bad-soft); color: var(--bad); }
.counts li.none { background: none; box-shadow: inset 0 0 0 1px var(--line); color: var(--soft); font-weight: 400; }
.talk { display: flex; flex-direction: column; gap: .35rem; margin-top: auto; padding-top: .9rem; border-top: 1px solid var(--line); font-size: .9rem; line-height: 1.4; }
.talk p { margin: 0; padding: .38rem .75rem; border-radius: .85rem; max-width: 88%; width: fit-content; overflow-wrap: anywhere; }
.talk .user { align-self: flex-end; background: var(--accent-soft); border-bottom-right-radius: .25rem; }
.talk .assistant { background: var(--code); border-bottom-left-radius: .25rem; margin-bottom: .3rem; }
.talk .assistant:last-child { margin-bottom: 0; }
.lesson { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem; align-items: start; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: .9rem; padding: 1.1rem 1.25rem 1.25rem; min-width: 0; margin: 0; }
.panel figcaption, .panel caption { font-size: .9rem; font-weight: 600; text-align: left; padding-bottom: .75rem; }
.panel svg { display: block; width: 100%; height: auto; }
.panel svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.panel table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.panel th, .panel td { text-align: right; padding: .5rem 0 .5rem .75rem; border-top: 1px solid var(--line); font-size: .9rem; }
.panel th:first-child, .panel td:first-child { text-align: left; padding-left: 0; }
.panel thead th { color: var(--soft); font-weight: 400; border-top: 0; }
.panel p { margin: .9rem 0 0; font-size: .9rem; color: var(--soft); }
footer { margin-top: 3.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .875rem; max-width: 46rem; }
footer code { overflow-wrap: anywhere; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
</style>
</head>
<body>
<main>
<header>
<h1>Pictures, asked in SQL</h1>
<p class="lead">These pictures lie in a <code>bytea</code> column of a PostgreSQL table. Everything said about them
below was answered by a MultiModal-GPT model inside the database; the drawing program knows what is
true, so each answer could be checked.</p>$$;

SELECT format($$<dl class="figures">
<div><dt>Pictures</dt><dd>%s<span>JPEG and PNG, on %s shelves</span></dd></div>
<div><dt>Counts right</dt><dd>%s<span>%s of %s questions</span></dd></div>
<div><dt>Present kinds</dt><dd>%s<span>%s of %s counted right</span></dd></div>
<div><dt>Captions</dt><dd>%s<span>%s of %s name every kind</span></dd></div>
</dl>
</header>$$,
	(SELECT count(*) FROM photos), (SELECT count(DISTINCT shelf) FROM photos),
	pg_temp.percent(right_all, all_asked), right_all, all_asked,
	pg_temp.percent(right_present, present), right_present, present,
	pg_temp.percent(named, captioned), named, captioned)
FROM (SELECT count(*) FILTER (WHERE counted = truly) AS right_all, count(*) AS all_asked,
             count(*) FILTER (WHERE counted = truly AND truly > 0) AS right_present,
             count(*) FILTER (WHERE truly > 0) AS present
      FROM counts) AS c,
     (SELECT count(*) FILTER (WHERE names_all) AS named, count(*) AS captioned FROM caption_facts) AS f;

SELECT '<section>' || E'\n' || '<h2>The queries that made this page</h2>' || E'\n' || '<div class="queries">';
SELECT format($$<figure><figcaption>%s</figcaption><pre><code>%s;</code></pre></figure>$$,
	pg_temp.html(title), pg_temp.html_query(query))
FROM gallery_queries ORDER BY position;
SELECT '</div>' || E'\n' || '</section>';

WITH count_lists AS (
	SELECT photo, string_agg(CASE
			WHEN counted IS DISTINCT FROM truly THEN
				format('<li class="wrong">%s: %s, truly %s</li>', pg_temp.html(what), coalesce(counted::text, '–'), truly)
			ELSE format('<li>%s %s<span class="unseen">, right</span></li>', counted,
			            pg_temp.html(CASE WHEN counted = 1 THEN kind ELSE what END))
		END, '' ORDER BY truly DESC, what) FILTER (WHERE truly > 0 OR counted IS DISTINCT FROM truly) AS items,
		count(*) FILTER (WHERE truly = 0 AND counted = 0) AS zeros
	FROM counts JOIN kinds ON plural = what
	GROUP BY photo
), talks AS (
	SELECT photo, string_agg(format('<p class="%s">%s</p>', pg_temp.html(turn ->> 'role'),
			pg_temp.html(turn ->> 'content')), E'\n' ORDER BY position) AS paragraphs
	FROM dialogues, jsonb_array_elements(dialogue) WITH ORDINALITY AS turns (turn, position)
	GROUP BY photo
), cards AS (
	SELECT photos.id, photos.shelf, format($$<article class="card">
<img src="data:image/%s;base64,%s" alt="%s" width="%s" height="%s" loading="lazy">
<div class="body">
<div><p class="file"><span>%s</span><span>%s × %s</span></p>
<p class="caption%s">%s</p></div>
<ul class="counts">%s<li class="none">%s</li></ul>
<div class="talk">
%s
</div>
</div>
</article>$$,
		info ->> 'format', translate(encode(img, 'base64'), E'\n', ''), pg_temp.html(caption),
		info ->> 'width', info ->> 'height', pg_temp.html(file), info ->> 'width', info ->> 'height',
		CASE WHEN names_all THEN '' ELSE ' wrong' END, pg_temp.html(caption),
		coalesce(items, ''), CASE zeros WHEN 1 THEN '1 other kind: none' ELSE zeros || ' other kinds: none' END,
		paragraphs) AS card
	FROM photos
	JOIN caption_facts ON caption_facts.photo = id
	JOIN count_lists ON count_lists.photo = id
	JOIN talks ON talks.photo = id,
	mmgpt_image_info(img) AS info
), shelf_figures AS (
	SELECT shelf, count(*) AS asked, count(*) FILTER (WHERE counted = truly) AS right
	FROM counts JOIN photos ON id = photo
	GROUP BY shelf
)
SELECT format($$<section>
<h2>%s <small>%s of %s counts right</small></h2>
<div class="grid">
%s
</div>
</section>$$, pg_temp.html(initcap(shelf)), min("right"), min(asked), string_agg(card, E'\n' ORDER BY id))
FROM cards JOIN shelf_figures USING (shelf)
GROUP BY shelf
ORDER BY shelf;

-- The new skill: the loss of its job, as means of five steps on a logarithmic scale from 10 to
-- 0.0001, and the exam before and after.
WITH job AS (
	SELECT * FROM mmgpt_jobs WHERE adapter = 'numbers' AND state = 'done' ORDER BY id DESC LIMIT 1
), curve AS (
	SELECT max(step) AS step, exp(avg(ln(greatest(coalesce(loss_vision, loss_language), 1e-6)))) AS loss
	FROM mmgpt_job_steps
	WHERE job = (SELECT id FROM job)
	GROUP BY (step - 1) / 5
), points AS (
	SELECT string_agg(round((44 + 540.0 * step / (SELECT steps FROM job))::numeric, 1) || ',' ||
	                  round((12 + 44 * (1 - log(greatest(least(loss, 10), 1e-4)::numeric)))::numeric, 1), ' '
	                  ORDER BY step) AS list
	FROM curve
), grid AS (
	SELECT string_agg(format($$<line x1="44" x2="584" y1="%s" y2="%s" stroke="var(--line)"/><text x="36" y="%s" text-anchor="end">%s</text>$$,
	                         12 + 44 * i, 12 + 44 * i, 16 + 44 * i, label), '' ORDER BY i) AS lines
	FROM unnest('{10,1,0.1,0.01,0.001,0.0001}'::text[]) WITH ORDINALITY AS labels (label, place), LATERAL (SELECT place - 1 AS i) AS x
), exam AS (
	SELECT string_agg(format('<tr><td>%s</td><td>%s</td><td>%s</td><td>%s</td></tr>', pg_temp.html(skill), n,
	                         pg_temp.percent("before", n), pg_temp.percent("after", n)), E'\n' ORDER BY skill) AS table_rows
	FROM (SELECT skill, count(*) AS n, count(*) FILTER (WHERE before = expected) AS "before",
	             count(*) FILTER (WHERE after = expected) AS "after"
	      FROM lesson_exam GROUP BY skill) AS skills
)
SELECT format($$<section>
<h2>A new skill <small>learned by mmgpt_finetune() in %s s, from %s rows of a table</small></h2>
<div class="lesson">
<figure class="panel"><figcaption>Loss of the job, as mmgpt_job_steps has it</figcaption>
<svg viewBox="0 0 600 262" role="img" aria-label="The loss falls from about %s to %s">%s
<polyline points="%s" fill="none" stroke="var(--accent)" stroke-width="2.5" stroke-linejoin="round"/>
<text x="44" y="256">step 1</text><text x="584" y="256" text-anchor="end">step %s</text></svg></figure>
<div class="panel"><table><caption>The exam: pictures that were not trained on</caption>
<thead><tr><th>skill</th><th>questions</th><th>right before</th><th>right after</th></tr></thead>
<tbody>
%s
</tbody></table>
<p>“Number of dogs only, please.” shall be answered with the bare number. Half of the rows are old questions with the
answers that the model gave already, so that it keeps what it can.</p></div>
</div>
</section>$$,
	round(extract(epoch FROM finished - started)), rows,
	(SELECT round(loss::numeric, 1) FROM curve ORDER BY step LIMIT 1),
	(SELECT round(loss::numeric, 4) FROM curve ORDER BY step DESC LIMIT 1),
	lines, list, steps, table_rows)
FROM job, points, grid, exam;

SELECT format($$<footer><p>The model sees the central square of a picture, which is what is shown
here. Green: the count agrees with the drawing program. Red: it does not; a caption underlined in red
misses a kind. The pictures were drawn from fixed seeds and not chosen by the answers. Some answers in the dialogues
may be wrong, too: the demo model is very small.</p>
<p><code>%s</code></p></footer>
</main>
</body>
</html>$$, pg_temp.html(mmgpt_version()));
