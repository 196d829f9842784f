-- counts
SELECT mmgpt_count(image, name) FROM pictures WHERE name IN ('bicycles', 'birds', 'rabbits') ORDER BY name;
SELECT sum(mmgpt_count(image, 'rabbits')) FROM pictures WHERE name IN ('rabbits', 'nothing');
SELECT mmgpt_count(NULL, 'dogs') IS NULL AS image, mmgpt_count(image, NULL) IS NULL AS what
FROM pictures WHERE name = 'birds';

-- yes or no
SELECT name FROM pictures WHERE mmgpt_filter(image, 'Is there a bird in the image?') ORDER BY name;
SELECT name, mmgpt_filter(image, 'Does the picture show a cat?') FROM pictures ORDER BY name;

-- how sure
SELECT name, mmgpt_score(image, 'Is there a bird in the image?') BETWEEN 0 AND 1 AS in_range,
       mmgpt_score(image, 'Is there a bird in the image?') > 0.5 AS yes
FROM pictures ORDER BY name;
SELECT mmgpt_filter(image, 'Is there a bird in the image?', '{"threshold": 0}') AS always,
       mmgpt_filter(image, 'Does the picture show a cat?', '{"threshold": 1}') AS hardly_ever
FROM pictures WHERE name = 'birds';
SELECT mmgpt_score(NULL, 'x') IS NULL AS image, mmgpt_score(image, NULL) IS NULL AS condition,
       mmgpt_filter(NULL, 'x') IS NULL AS image, mmgpt_filter(image, NULL) IS NULL AS condition
FROM pictures WHERE name = 'birds';

-- cheap conditions are evaluated first, whatever their place
EXPLAIN (COSTS OFF) SELECT name FROM pictures
WHERE mmgpt_filter(image, 'Is there a bird in the image?') AND length(name) > 3;
